//! The flags that say how the base of an adapter was quantized, shared by the commands that merge.

use std::path::Path;

use clap::Args;

use crate::adapter::merge::MergeTarget;
use crate::adapter::peft;
use crate::cli::model::quantization_settings;
use crate::config::Quantization;
use crate::error::{Error, Result};
use crate::model::quantize;

/// How the base was quantized while the adapter was trained, and what the adapter is added to.
#[derive(Args, Clone, Copy, Debug)]
pub(in crate::cli) struct BaseArgs {
    /// Set the quantization of the base during training [default: that recorded in the adapter's folder].
    #[arg(long, value_enum, value_name = "none|nf4|fp4|int8", hide_possible_values = true)]
    pub quantization: Option<Quantization>,
    /// Declare that the scales were quantized too (double quantization).
    #[arg(long, requires = "quantization")]
    pub double_quant: bool,
    /// Choose the weights that an adapter trained on a quantized base is added to: the dequantized weights, which
    /// gives exactly the trained model; the original weights; or the dequantized weights with the result quantized
    /// again [default: dequantized].
    #[arg(
        long,
        value_enum,
        value_name = "dequantized|original|requantized",
        hide_possible_values = true
    )]
    pub target: Option<MergeTarget>,
}

impl BaseArgs {
    /// Returns the quantization of the base: that of the flags, of the stored weights, or of the adapter's record. `other`
    /// is another flag that has no effect without one.
    ///
    /// # Errors
    /// The flags contradict the stored weights, or one of them has no effect.
    pub(in crate::cli) fn quantization(
        &self,
        stored: Option<quantize::Quantization>,
        adapter: Option<&Path>,
        other: Option<&str>,
    ) -> Result<Option<quantize::Quantization>> {
        let quantization = match (self.quantization, stored) {
            (Some(requested), stored) => {
                let requested = quantization_settings(requested, self.double_quant)?;
                if stored.is_some() && requested != stored {
                    return Err(Error::invalid(
                        "--quantization",
                        "differs from the quantization of the base's files",
                        "leave it out: the files already say how they are quantized",
                    ));
                }
                requested
            }
            (None, Some(stored)) => Some(stored),
            (None, None) => match adapter {
                Some(adapter) => peft::base_quantization(adapter)?,
                None => None,
            },
        };
        match (quantization, self.target.map(|_| "--target").or(other)) {
            (None, Some(flag)) => Err(Error::invalid(
                flag,
                "has no effect: nothing says that the adapter was trained on a quantized base",
                "leave it out, or name the base's quantization with --quantization",
            )),
            (quantization, _) => Ok(quantization),
        }
    }
}
