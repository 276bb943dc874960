//! The Mistral model with Hugging Face's field names, generic over the backend.

pub mod attention;
pub mod config;
pub mod dtype;
pub mod file_hash;
pub mod hub;
pub mod identity;
pub mod input;
pub mod kv_cache;
pub mod limits;
pub mod linear;
pub mod load;
pub mod mistral;
pub mod mlp;
pub mod not_finite;
pub mod positions;
pub mod quantize;
pub mod rms_norm;
pub mod save;
pub mod weights;
