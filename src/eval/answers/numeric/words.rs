//! Classifies words before and after numbers.

/// Returns whether a word means "times", as in `3 times`.
pub(super) fn is_times(word: &str) -> bool {
    ["times", "fois", "mal", "veces", "vezes", "volte"].contains(&word)
}

/// Returns whether a word after "times" begins a comparison: `3 times as many`, `3 times her age`, `3 times longer`.
pub(super) fn is_comparison(word: &str) -> bool {
    const COMPARES: [&str; 31] = [
        "as", "more", "less", "the", "his", "her", "its", "their", "my", "your", "our", "that",
        "what", "this", "those", "these", "larger", "bigger", "smaller", "greater", "longer",
        "faster", "older", "plus", "so", "más", "mais", "mehr", "que", "autant", "moins",
    ];
    const NOT_COMPARATIVES: [&str; 12] = [
        "per",
        "after",
        "over",
        "under",
        "together",
        "altogether",
        "however",
        "either",
        "other",
        "another",
        "ever",
        "whether",
    ];
    let is_comparative =
        word.len() > 4 && word.ends_with("er") && !NOT_COMPARATIVES.contains(&word);
    COMPARES.contains(&word) || is_comparative
}

/// Returns whether a letter after a number is a unit: `18 m`. Other single letters are variables.
pub(super) fn is_unit_letter(letter: &str) -> bool {
    ["m", "g", "s", "h", "l", "p", "c", "L", "C", "F", "W", "V", "N", "J", "a"].contains(&letter)
}

/// Returns whether two letters directly after a number are a unit: `18km`. Others are a product of variables: `2ab`.
pub(super) fn is_short_unit(word: &str) -> bool {
    const UNITS: [&str; 44] = [
        "km", "cm", "mm", "dm", "nm", "mi", "yd", "ft", "in", "kg", "mg", "lb", "oz", "ml", "cl",
        "dl", "gb", "mb", "kb", "tb", "hr", "ms", "pm", "am", "st", "nd", "rd", "th", "pt", "qt",
        "kw", "hp", "hz", "rs", "kr", "zł", "ha", "cc", "mw", "wh", "ev", "pa", "kn", "mn",
    ];
    UNITS.contains(&word.to_lowercase().as_str())
}

/// Returns whether a word begins a phrase that does not change the value of the number before it: `18 eggs when x = 6`.
pub(super) fn begins_phrase(word: &str) -> bool {
    const BEGIN: [&str; 45] = [
        "when",
        "if",
        "because",
        "since",
        "as",
        "after",
        "before",
        "for",
        "from",
        "per",
        "of",
        "in",
        "out",
        "by",
        "on",
        "with",
        "where",
        "which",
        "that",
        "who",
        "while",
        "given",
        "assuming",
        "until",
        "till",
        "each",
        "every",
        "during",
        "among",
        "into",
        "within",
        "without",
        "using",
        "but",
        "so",
        "not",
        "including",
        "excluding",
        "at",
        "over",
        "than",
        "whose",
        "a",
        "an",
        "weil",
    ];
    BEGIN.contains(&word.to_lowercase().as_str())
}

/// Returns whether a word announces another number for the same answer: `18 eggs, or 20`, `for a total of 36`.
pub(super) fn restates(word: &str) -> bool {
    const RESTATE: [&str; 22] = [
        "or",
        "but",
        "however",
        "so",
        "ie",
        "i.e",
        "namely",
        "equivalently",
        "equal",
        "equals",
        "equaling",
        "total",
        "totaling",
        "totalling",
        "making",
        "giving",
        "meaning",
        "leaving",
        "hence",
        "thus",
        "therefore",
        "altogether",
    ];
    RESTATE.contains(&word.to_lowercase().as_str())
}

/// Returns whether a word begins a reason, which may contain other numbers.
pub(super) fn begins_reason(word: &str) -> bool {
    ["because", "since", "as", "where", "when", "if", "after", "given"]
        .contains(&word.to_lowercase().as_str())
}

/// Returns whether the number after a word is not the stated one: `not 18`, `more than 18`, `twice 18`, `step 2`.
pub(super) fn excludes_number(word: &str) -> bool {
    const EXCLUDE: &[&str] = &[
        "longer",
        "than",
        "between",
        "under",
        "over",
        "above",
        "below",
        "twice",
        "double",
        "triple",
        "half",
        "third",
        "quarter",
        "step",
        "option",
        "equation",
        "eq",
        "line",
        "page",
        "thrice",
        "neither",
        "plus",
        "hardly",
        "nowhere",
        "different",
        "unlike",
        "far",
        "anything",
    ];
    EXCLUDE.contains(&word.to_lowercase().as_str()) || denies_number(word)
}

/// Returns whether a word denies the number after it.
pub(super) fn denies_number(word: &str) -> bool {
    const DENY: [&str; 18] = [
        "not",
        "never",
        "isn't",
        "isn’t",
        "cannot",
        "can't",
        "can’t",
        "couldn't",
        "couldn’t",
        "doesn't",
        "doesn’t",
        "didn't",
        "didn’t",
        "nicht",
        "pas",
        "kein",
        "keine",
        "nunca",
    ];
    DENY.contains(&word.to_lowercase().as_str()) || word.ends_with("不是")
}

/// Returns whether a word is the name of a function: `log 100`, `sqrt(16)`.
pub(super) fn is_function(word: &str) -> bool {
    [
        "sqrt", "cbrt", "log", "ln", "exp", "sin", "cos", "tan", "max", "gcd", "lcm", "abs",
        "floor", "ceil",
    ]
    .contains(&word.to_lowercase().as_str())
}

/// Returns whether a spaced dash after a word is a minus sign: `the answer is - 3`.
pub(super) fn states(word: &str) -> bool {
    const STATE: [&str; 17] = [
        "is",
        "are",
        "was",
        "be",
        "equals",
        "equal",
        "of",
        "to",
        "approximately",
        "about",
        "exactly",
        "therefore",
        "thus",
        "ist",
        "est",
        "es",
        "simply",
    ];
    STATE.contains(&word.to_lowercase().as_str())
}

/// Returns whether two units form a compound: `2 hours and 30 minutes`.
pub(super) fn is_compound(larger: &str, smaller: &str) -> bool {
    const FAMILIES: [&[&str]; 6] = [
        &[
            "year", "yr", "month", "week", "day", "hour", "hr", "h", "minute", "min", "m",
            "second", "sec", "s",
        ],
        &["mile", "yard", "yd", "foot", "feet", "ft", "inch", "inche", "in"],
        &["kilometer", "km", "meter", "metre", "m", "centimeter", "cm", "millimeter", "mm"],
        &["ton", "pound", "lb", "ounce", "oz", "kilogram", "kg", "gram", "g"],
        &["gallon", "quart", "pint", "cup", "liter", "litre", "l", "milliliter", "ml"],
        &["dollar", "cent", "euro", "pound", "pence", "rupee", "paise", "penny", "pennie"],
    ];
    let singular = |word: &str| {
        let word = word.to_lowercase();
        word.strip_suffix('s').map_or(word.clone(), str::to_string)
    };
    let (larger, smaller) = (singular(larger), singular(smaller));
    let index = |family: &[&str], unit: &str| family.iter().position(|member| *member == unit);
    FAMILIES.iter().any(|family| {
        let indices = index(family, &larger).zip(index(family, &smaller));
        indices.is_some_and(|(larger, smaller)| larger < smaller)
    })
}

/// Returns whether a word or sign means euros.
pub(super) fn is_euro(word: &str) -> bool {
    ["€", "eur", "euro", "euros"].contains(&word.to_lowercase().as_str())
}

/// Returns whether letters directly before digits are the code of a currency: `USD18`.
pub(super) fn is_currency_code(word: &str) -> bool {
    [
        "USD", "EUR", "GBP", "INR", "CAD", "AUD", "Rs", "RS", "US", "RMB", "CNY", "JPY", "Php",
        "PHP", "CHF",
    ]
    .contains(&word)
}

/// Returns whether a word is an abbreviation, after which a full stop does not end the sentence.
pub(super) fn is_abbreviation(word: &str) -> bool {
    const SHORT: [&str; 24] = [
        "rs", "approx", "no", "ca", "vs", "mr", "mrs", "ms", "dr", "st", "e", "g", "i", "p", "a",
        "sq", "cu", "ft", "hr", "hrs", "min", "lb", "lbs", "oz",
    ];
    SHORT.contains(&word.to_ascii_lowercase().as_str())
}
