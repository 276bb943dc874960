//! The decoder-only transformer with Hugging Face's field names, generic over the backend, and the families of models
//! that it can be.

pub mod attention;
pub mod config;
pub mod decoder;
pub mod dtype;
pub mod family;
pub mod file_hash;
pub mod gguf;
pub mod hub;
pub mod identity;
pub mod input;
pub mod kv_cache;
pub mod limits;
pub mod linear;
pub mod load;
pub mod mlp;
pub mod names;
pub mod not_finite;
pub mod positions;
pub mod quantize;
pub mod rms_norm;
pub mod rope;
pub mod save;
pub mod switches;
pub mod weights;

pub use self::decoder::Decoder;
pub use self::family::mistral::Mistral;
