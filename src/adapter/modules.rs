//! Decides which modules an adapter concerns, as PEFT does: by name, by regular expression, and by layer.

use fancy_regex::{Captures, Regex};

use crate::error::{Error, Result};

/// The projections that get a low-rank branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every projection of every layer; never `lm_head`.
    AllLinear,
    /// Modules whose full name is one of these, or ends in `.` and one of these.
    Names(Vec<String>),
    /// Modules whose full name matches this regular expression from start to end.
    Pattern(String),
}

impl Default for TargetModules {
    /// Returns the modules that PEFT targets by default in most families.
    fn default() -> Self {
        Self::Names(["q_proj", "v_proj"].map(String::from).to_vec())
    }
}

impl TargetModules {
    /// Returns whether the module `name` (`model.layers.0.self_attn.q_proj`) gets a branch.
    ///
    /// # Errors
    /// The pattern is not a valid regular expression, or matching it takes too many steps.
    pub fn matches(&self, name: &str) -> Result<bool> {
        match self {
            Self::AllLinear => Ok(true),
            Self::Names(names) => Ok(is_named(names, name)),
            Self::Pattern(pattern) => full_match("target_modules", pattern, name),
        }
    }
}

/// Modules that get no branch although they are targeted (PEFT's `exclude_modules`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExcludeModules {
    /// Modules whose full name is one of these, or ends in `.` and one of these.
    Names(Vec<String>),
    /// Modules whose full name matches this regular expression from start to end.
    Pattern(String),
}

impl Default for ExcludeModules {
    fn default() -> Self {
        Self::Names(Vec::new())
    }
}

impl ExcludeModules {
    /// Returns whether the module `name` is excluded.
    ///
    /// # Errors
    /// Same as [`TargetModules::matches`].
    pub fn matches(&self, name: &str) -> Result<bool> {
        match self {
            Self::Names(names) => Ok(is_named(names, name)),
            Self::Pattern(pattern) if pattern.is_empty() => Ok(false),
            Self::Pattern(pattern) => full_match("exclude_modules", pattern, name),
        }
    }

    /// Returns whether nothing is excluded.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Names(names) => names.is_empty(),
            Self::Pattern(pattern) => pattern.is_empty(),
        }
    }
}

/// Values for the modules whose names match a regular expression (PEFT's `rank_pattern` and `alpha_pattern`). The first
/// match counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> Patterns<T> {
    /// Returns the same patterns with changed values.
    pub fn map(&self, change: impl Fn(T) -> T) -> Self {
        Self(self.0.iter().map(|(pattern, value)| (pattern.clone(), change(*value))).collect())
    }

    /// Returns the value of the first pattern that matches the end of `module`'s name, from the start of one of its
    /// parts; `None` if no pattern matches. `key` is the key in errors.
    ///
    /// # Errors
    /// Same as [`TargetModules::matches`].
    pub fn get(&self, key: &str, module: &str) -> Result<Option<T>> {
        for (pattern, value) in &self.0 {
            if matches_end(key, pattern, module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    /// Returns whether the patterns are in the order in which PEFT saves them.
    pub fn is_sorted(&self) -> bool {
        self.0.is_sorted_by(|a, b| a.0 <= b.0)
    }

    /// Checks that the patterns that match `module` have one value. PEFT sorts them when it saves an adapter, so that
    /// their order, and with it which of them counts, would be lost.
    ///
    /// # Errors
    /// Two patterns give the module different values, or those of [`Self::get`].
    pub fn check_one_value(&self, key: &str, module: &str) -> Result<()> {
        let mut first: Option<(&String, T)> = None;
        for (pattern, value) in &self.0 {
            if !matches_end(key, pattern, module)? {
                continue;
            }
            let (earlier, expected) = *first.get_or_insert((pattern, *value));
            if expected != *value {
                return Err(Error::invalid(
                    key,
                    format!(
                        "`{earlier}` and `{pattern}` give {module} different values, and adapter_config.json does not keep \
                         their order"
                    ),
                    "write patterns that match different modules, such as `layers.1.self_attn.q_proj`",
                ));
            }
        }
        Ok(())
    }
}

/// The layers whose projections get a branch (PEFT's `layers_to_transform` and `layers_pattern`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerChoice {
    /// Indices of the layers; empty means all layers.
    pub indices: Vec<usize>,
    /// Regular expressions for the part of the name before the index (`layers`); empty means any part.
    pub patterns: Vec<String>,
}

impl LayerChoice {
    /// Returns whether the module `name` is in one of the layers.
    ///
    /// # Errors
    /// Same as [`TargetModules::matches`].
    pub fn contains(&self, name: &str) -> Result<bool> {
        const KEY: &str = "layers_pattern";
        if self.indices.is_empty() {
            return Ok(true);
        }
        // The first number of the name, which PEFT's lazy `.*?` finds too.
        let expressions: Vec<String> = match self.patterns.as_slice() {
            [] => vec![r"\A.*?\.[^.]*\.(?P<index>\d+)\.".to_string()],
            patterns => (patterns.iter())
                .map(|pattern| {
                    let pattern = with_end_of_text(pattern);
                    format!(r"\A(?:|.*?\.){pattern}\.(?P<index>\d+)\.")
                })
                .collect(),
        };
        for expression in expressions {
            let unusable = |error| unusable(KEY, &expression, &error);
            let regex = Regex::new(&expression).map_err(unusable)?;
            if let Some(found) = regex.captures(name).map_err(unusable)? {
                let index = |found: Captures<'_>| found.name("index")?.as_str().parse().ok();
                return Ok(index(found).is_some_and(|index| self.indices.contains(&index)));
            }
        }
        Ok(false)
    }
}

/// Returns whether the module `name` is one of `modules`, or lies in one. Each of them is a regular expression for
/// whole parts of a name, as in PEFT's `check_target_module_exists`.
///
/// # Errors
/// Same as [`TargetModules::matches`].
pub(super) fn is_part_of(modules: &[String], name: &str) -> Result<bool> {
    for module in modules {
        let translated = with_end_of_text(module);
        let expression = format!(r"\A(^|.*\.){translated}(\z|\..*)");
        if is_match("modules_to_save", module, &expression, name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns whether `name` is one of `names`, or ends in `.` and one of them.
fn is_named(names: &[String], name: &str) -> bool {
    names.iter().any(|target| {
        name.strip_suffix(target.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// Matches `name` from start to end, as Python's `re.fullmatch`, with its look-around and back references.
fn full_match(key: &str, pattern: &str, name: &str) -> Result<bool> {
    let translated = with_end_of_text(pattern);
    is_match(key, pattern, &format!(r"\A(?:{translated})\z"), name)
}

/// Matches the end of `name` as PEFT's `get_pattern_key`. The groups are PEFT's too, because a pattern may refer to them.
fn matches_end(key: &str, pattern: &str, name: &str) -> Result<bool> {
    let translated = with_end_of_text(pattern);
    is_match(key, pattern, &format!(r"\A(.*\.)?({translated})\z"), name)
}

fn is_match(key: &str, pattern: &str, expression: &str, name: &str) -> Result<bool> {
    let unusable = |error| unusable(key, pattern, &error);
    let regex = Regex::new(expression).map_err(unusable)?;
    regex.is_match(name).map_err(unusable)
}

fn unusable(key: &str, pattern: &str, error: &fancy_regex::Error) -> Error {
    let problem = format!("`{pattern}` is not a usable regular expression: {error}");
    Error::invalid(key, problem, "correct it, or use module names instead")
}

/// Translates a regular expression from Python's syntax to Rust's: the end of the text is `\Z` in Python and `\z` in Rust.
fn with_end_of_text(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len());
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        translated.push(letter);
        if letter == '\\' {
            // A backslash takes the letter behind it along, another backslash too.
            let escaped = letters.next();
            translated.extend(escaped.map(|letter| if letter == 'Z' { 'z' } else { letter }));
        }
    }
    translated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_whole_path_parts_only() {
        let targets = TargetModules::Names(vec!["q_proj".into(), "layers.1.mlp.up_proj".into()]);
        let matches = |name| targets.matches(name).unwrap();
        assert!(matches("model.layers.0.self_attn.q_proj"));
        assert!(!matches("model.layers.0.self_attn.xq_proj"));
        assert!(matches("model.layers.1.mlp.up_proj"));
        assert!(!matches("model.layers.11.mlp.up_proj"));
        let pattern = TargetModules::Pattern(r".*\.mlp\..*".into());
        assert!(pattern.matches("model.layers.0.mlp.up_proj").unwrap());
        assert!(!pattern.matches("model.layers.0.self_attn.q_proj").unwrap());
    }

    #[test]
    fn patterns_follow_python() {
        let pattern = TargetModules::Pattern(r"^(?!.*lm_head).*(q_proj|v_proj)$".into());
        assert!(pattern.matches("model.layers.0.self_attn.q_proj").unwrap());
        assert!(!pattern.matches("model.layers.0.self_attn.k_proj").unwrap());
        assert!(!pattern.matches("lm_head.q_proj").unwrap());
        let end = TargetModules::Pattern(r".*(q_proj\Z|v_proj)".into());
        assert!(end.matches("layers.0.q_proj").unwrap() && end.matches("layers.0.v_proj").unwrap());
        // As in Python, not before a line end; and a backslash before a Z is a backslash.
        assert!(!TargetModules::Pattern(r"q_proj\Z\n".into()).matches("q_proj\n").unwrap());
        assert!(TargetModules::Pattern(r"a\\Z".into()).matches(r"a\Z").unwrap());
        // From end to end, as re.fullmatch, whatever a branch of the pattern says.
        let half = TargetModules::Pattern(r"model|.*q_proj\n?".into());
        assert!(!half.matches("model.layers.0").unwrap());
        assert!(!half.matches("q_proj.x").unwrap());
        let broken = TargetModules::Pattern("(".into());
        assert!(broken.matches("a").unwrap_err().to_string().contains("`(`"));
        // Exponential for a backtracking matcher: refused after a bounded number of steps.
        let slow = TargetModules::Pattern(r"(?=(a+)+$)\1b".into());
        assert!(slow.matches(&"a".repeat(64)).is_err() || !slow.matches(&"a".repeat(64)).unwrap());
    }

    /// The expected values are those of `re.match(rf"(.*\.)?({key})$", name)`.
    #[test]
    fn the_first_pattern_that_matches_the_end_counts() {
        let entries = [
            (r"^model.layers.0.self_attn.q_proj", 9),
            ("q_proj", 2),
            (r".*\.1\.mlp\.down_proj", 3),
            (r"(up|gate)_proj", 4),
            ("proj", 5),
        ];
        let patterns = Patterns(entries.map(|(key, value)| (key.to_string(), value)).to_vec());
        let at = |module: &str| patterns.get("rank_pattern", module).unwrap();
        assert_eq!(at("model.layers.0.self_attn.q_proj"), Some(9));
        assert_eq!(at("model.layers.1.self_attn.q_proj"), Some(2));
        assert_eq!(at("model.layers.1.mlp.down_proj"), Some(3));
        assert_eq!(at("model.layers.11.mlp.down_proj"), None);
        assert_eq!(at("model.layers.1.mlp.gate_proj"), Some(4));
        // `proj` is no whole part of a name.
        assert_eq!(at("model.layers.1.self_attn.v_proj"), None);
        let error = patterns.check_one_value("rank_pattern", "model.layers.0.self_attn.q_proj");
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("rank_pattern: ") && error.contains("`q_proj`"), "{error}");
        patterns.check_one_value("rank_pattern", "model.layers.1.self_attn.q_proj").unwrap();
    }

    #[test]
    fn layers_are_found_by_the_first_number_of_the_name() {
        let name = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj");
        let choice = |indices: &[usize], patterns: &[&str]| LayerChoice {
            indices: indices.to_vec(),
            patterns: patterns.iter().map(|pattern| pattern.to_string()).collect(),
        };
        let layers = |choice: LayerChoice| -> Vec<usize> {
            (0..13).filter(|layer| choice.contains(&name(*layer)).unwrap()).collect()
        };
        assert_eq!(layers(choice(&[1, 12], &[])), [1, 12]);
        assert_eq!(layers(choice(&[1, 3], &["layers"])), [1, 3]);
        assert_eq!(layers(choice(&[1, 3], &["h", "lay.*"])), [1, 3]);
        assert!(layers(choice(&[1], &["h"])).is_empty());
        assert!(layers(choice(&[1], &["ayers"])).is_empty());
        assert_eq!(layers(choice(&[], &["h"])).len(), 13);
        assert!(choice(&[1], &["("]).contains(&name(0)).is_err());
    }
}
