//! The warning about a long run that writes no checkpoint before its end.

/// Remaining time in seconds above which a run without checkpoints causes a warning.
const LONG_RUN: f64 = 600.0;

/// Returns the warning for a run of `remaining` more steps of `seconds` seconds each if it is long and writes no checkpoint
/// before its end.
pub fn unsaved_warning(save_steps: usize, remaining: usize, seconds: f64) -> Option<String> {
    let total = remaining as f64 * seconds;
    let saves = save_steps > 0 && save_steps <= remaining;
    (total > LONG_RUN && !saves).then(|| {
        format!(
            "warning: train.save_steps is {save_steps}: nothing is saved before the end, in about {:.0} minutes, unless you \
             press Ctrl-C; a crash would lose all of it. Set train.save_steps, for example with --set train.save_steps={}",
            total / 60.0,
            ((LONG_RUN / seconds) as usize).clamp(1, remaining.max(1)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_without_checkpoints_causes_a_warning() {
        // 700 steps of one second take longer than ten minutes, and 600 steps make a checkpoint every ten minutes.
        let warning = unsaved_warning(0, 700, 1.0).unwrap();
        assert!(warning.contains("about 12 minutes"), "{warning}");
        assert!(warning.contains("train.save_steps=600"), "{warning}");
        assert!(unsaved_warning(0, 500, 1.0).is_none());
        assert!(unsaved_warning(100, 700, 1.0).is_none());
        assert!(unsaved_warning(1000, 700, 1.0).is_some());
        // A step longer than ten minutes.
        assert!(unsaved_warning(0, 3, 1000.0).unwrap().contains("save_steps=1"));
    }
}
