//! Tables of LaTeX commands and characters, and the symbols that they represent.

/// Commands for a space.
pub(super) const SPACES: &[&str] =
    &["quad", "qquad", "thinspace", "medspace", "thickspace", "enspace", "space", "nobreakspace"];

/// Commands that change only the appearance of a formula.
#[rustfmt::skip]
pub(super) const IGNORED_COMMANDS: &[&str] = &[
    "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "rm", "bf", "it", "sf", "tt", "boxed", "fbox", "ensuremath",
    "mathstrut", "middle", "nonumber", "hfill", "mathopen", "mathclose", "mathbin", "mathrel", "mathord", "negthinspace", "small",
    "large", "Large", "LARGE", "huge", "Huge", "tiny", "footnotesize", "scriptsize", "normalsize", "boldsymbol", "mathbf", "mathit", "mathsf", "mathtt", "bold", "bm", "underline",
];

/// Commands whose argument is not part of the formula.
pub(super) const INVISIBLE_COMMANDS: &[&str] =
    &["tag", "label", "hspace", "vspace", "phantom", "hphantom", "vphantom"];

/// Commands for upright text: words, units, names of functions.
#[rustfmt::skip]
pub(super) const UPRIGHT_COMMANDS: &[&str] = &[
    "text", "textbf", "textrm", "textit", "textsf", "texttt", "textnormal", "textup", "mbox", "hbox", "mathrm", "operatorname",
    "emph", "textsc", "mathnormal",
];

/// Groups of commands with the same meaning, each with its symbol (one character) or the command that replaces it.
#[rustfmt::skip]
pub(super) const COMMAND_SYMBOLS: &[(&str, &str)] = &[
    ("frac dfrac tfrac cfrac nicefrac sfrac", "frac"), ("binom dbinom tbinom", "binom"),
    ("cdot times ast cdotp", "*"), ("div slash", "/"), ("pm", "±"), ("mp", "∓"), ("colon", ":"),
    ("le leq leqslant leqq", "≤"), ("ge geq geqslant geqq", "≥"), ("lt", "<"), ("gt", ">"), ("ne neq", "≠"),
    ("equiv", "≡"), ("approx simeq thickapprox doteq", "≈"), ("sim", "∼"), ("in", "∈"), ("cup bigcup", "∪"), ("cap bigcap", "∩"), ("setminus backslash", "∖"),
    ("lbrace", "⦃"), ("rbrace", "⦄"), ("langle", "⟨"), ("rangle", "⟩"), ("lvert", "⟦"), ("rvert", "⟧"), ("vert mid", "|"),
    ("lVert rVert Vert", "‖"), ("lbrack", "["), ("rbrack", "]"), ("lparen", "("), ("rparen", ")"),
    ("degree", "°"), ("prime", "'"), ("dots ldots cdots dotsc dotsb", "ldots"), ("overline bar", "overline"),
    ("emptyset varnothing", "emptyset"), ("lor vee", "∨"), ("land wedge", "∧"),
    ("implies Rightarrow rightarrow to longrightarrow Longrightarrow", "⇒"), ("iff Leftrightarrow", "⇔"),
    ("euro", "€"), ("pounds", "£"), ("yen", "¥"), ("cr newline", "⏎"), ("percent", "%"),
];

/// Returns the symbol that a character represents (one character), or the command (a longer text). The text is empty if the
/// character is skipped.
pub(super) fn character_symbol(c: char) -> Option<&'static str> {
    #[rustfmt::skip]
    const SAME: &[(&str, &str)] = &[
        ("-\u{2010}\u{2011}\u{2012}\u{2013}\u{2014}\u{2212}\u{ff0d}", "-"), ("+\u{ff0b}", "+"), ("*·×∗⋅•", "*"), ("/÷∕⁄", "/"), ("^", "^"),
        ("_", "_"), ("!", "!"), ("(\u{ff08}", "("), (")\u{ff09}", ")"), ("[", "["), ("]", "]"), ("|", "|"), (",\u{ff0c}\u{3001}", ","), (";\u{ff1b}", ";"),
        (":∶\u{ff1a}", ":"), ("=", "="), ("<", "<"), (">", ">"), ("≤⩽", "≤"), ("≥⩾", "≥"), ("≠", "≠"), ("≡", "≡"), ("≈≃", "≈"), ("∼", "∼"), ("∈", "∈"),
        ("∪", "∪"), ("∩", "∩"), ("∖", "∖"), ("±", "±"), ("∓", "∓"), ("%", "%"), ("&", "&"), ("°º", "°"), ("'′’", "'"), ("€", "€"),
        ("£", "£"), ("¥", "¥"), ("₹", "₹"), ("⟨", "⟨"), ("⟩", "⟩"), ("⌊", "lfloor"), ("⌋", "rfloor"), ("⌈", "lceil"), ("⌉", "rceil"),
        ("√", "sqrt"), ("∞", "infty"), ("π", "pi"), ("∅", "emptyset"), ("ℝ", "reals"), ("ℤ", "integers"), ("…", "ldots"), ("⇒→", "⇒"), ("\u{200b}\u{2060}\u{feff}", ""),
        ("∨", "∨"), ("∧", "∧"), (".", "."), ("?", "?"), ("\"“”", "\""), ("#", "#"), ("θ", "theta"), ("α", "alpha"), ("β", "beta"), ("γ", "gamma"),
        ("λ", "lambda"), ("φ", "phi"), ("ω", "omega"), ("μ", "mu"), ("σ", "sigma"), ("δ", "delta"),
    ];
    SAME.iter().find(|(characters, _)| characters.contains(c)).map(|(_, symbol)| *symbol)
}

/// Returns the digit or minus sign of a superscript character.
pub(super) fn superscript(c: char) -> Option<char> {
    Some(match c {
        '⁰' => '0',
        '¹' => '1',
        '²' => '2',
        '³' => '3',
        '⁴'..='⁹' => char::from_digit(c as u32 - 0x2070, 10)?,
        '⁻' => '-',
        _ => return None,
    })
}

/// Commands that are read as names: Greek letters, and signs without a value.
#[rustfmt::skip]
pub(super) const NAME_COMMANDS: &[&str] = &[
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi",
    "Sigma", "Phi", "Psi", "Omega", "ell", "hbar", "ldots", "emptyset", "reals", "integers", "aleph", "triangle", "square", "clubsuit",
    "heartsuit", "star", "perp", "parallel", "angle", "cong",
];

/// Words of two and three letters that are not products of variables.
#[rustfmt::skip]
pub(super) const SHORT_WORDS: &[&str] = &[
    "yes", "no", "odd", "all", "one", "two", "six", "ten", "red", "and", "or", "mod", "the", "of", "is", "per", "sq", "cu", "none",
    "to", "for", "not", "any", "mon", "tue", "wed", "thu", "fri", "sat", "sun", "pm", "am", "if", "each", "day", "man", "men", "kid", "box",
    "usd", "gal", "deg", "rad", "hr", "hrs", "min", "sec", "cm", "mm", "km", "ft", "kg", "mg", "lb", "lbs", "oz", "yd", "mph", "kph", "ml", "egg",
    "car", "way", "bit", "dne",
];
