//! Names what keeps vLLM from serving an adapter, so that a user learns it before the training and not after it.

use super::LoraConfig;
use super::config::LoraBias;

/// The largest rank that vLLM's `max_lora_rank` takes (`MaxLoRARanks` in vllm/config/lora.py).
const MAX_RANK: usize = 512;

impl LoraConfig {
    /// Returns the settings that vLLM refuses or ignores when it opens the adapter, each with what vLLM does; empty if
    /// it serves the adapter as it was trained.
    ///
    /// Source: `PEFTHelper` in vllm/lora/peft_helper.py, which reads `r`, `lora_alpha`, `target_modules`, `bias`,
    /// `modules_to_save`, `use_rslora` and `use_dora` and drops every other key.
    pub fn obstacles_in_vllm(&self) -> Vec<String> {
        let saved = self.for_original_base();
        let mut obstacles = Vec::new();
        let mut check = |applies: bool, obstacle: String| {
            if applies {
                obstacles.push(obstacle);
            }
        };
        check(saved.r > MAX_RANK, format!("rank {} (at most {MAX_RANK})", saved.r));
        check(saved.use_dora, "use_dora (refused)".into());
        check(saved.bias != LoraBias::None, "bias (refused)".into());
        check(saved.lora_bias, "lora_bias (refused)".into());
        check(!saved.modules_to_save.is_empty(), "modules_to_save (refused)".into());
        check(
            !saved.rank_pattern.0.is_empty() || !saved.alpha_pattern.0.is_empty(),
            "rank_pattern and alpha_pattern (ignored: the scaling would be wrong)".into(),
        );
        obstacles
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::{LoraInit, Patterns};
    use super::*;

    #[test]
    fn a_plain_adapter_is_served() {
        let served = LoraConfig { r: 512, use_rslora: true, ..LoraConfig::default() };
        assert_eq!(served.obstacles_in_vllm(), Vec::<String>::new());
    }

    #[test]
    fn every_setting_that_is_refused_or_ignored_is_named() {
        let refused = LoraConfig {
            r: 257,
            init: LoraInit::Olora,
            use_dora: true,
            bias: LoraBias::All,
            lora_bias: true,
            modules_to_save: vec!["lm_head".into()],
            alpha_pattern: Patterns(vec![("q_proj".into(), 3.0)]),
            ..LoraConfig::default()
        };
        let obstacles = refused.obstacles_in_vllm();
        let begins =
            ["rank 514", "use_dora", "bias", "lora_bias", "modules_to_save", "rank_pattern"];
        assert_eq!(obstacles.len(), begins.len(), "{obstacles:?}");
        for (obstacle, begin) in obstacles.iter().zip(begins) {
            assert!(obstacle.starts_with(begin), "{obstacle}");
        }
    }
}
