//! The Mistral model: Hugging Face field names, generic over the backend.

pub mod config;
pub mod hub;
pub mod save;
pub mod weights;
