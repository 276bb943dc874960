//! The Mistral model: Hugging Face field names, generic over the backend.
