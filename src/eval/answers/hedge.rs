//! Recognizes words before an announced answer that make it a guess, a mistake or a question: "One might think that the
//! answer is 18."

use std::sync::LazyLock;

use regex::Regex;

use crate::eval::pattern;

/// Number of bytes before an announcement that are read.
const MAX_CLAUSE_BYTES: usize = 200;

/// Hedges anywhere in the sentence before the announcement.
static SENTENCE: LazyLock<Regex> = LazyLock::new(|| {
    let one = r"\b(?:one|you|some|people|someone|somebody|many|most|they|he|she|we|students?)\s+";
    let thinks = r"(?:might|may|could|would)\s+(?:\w+\s+){0,2}(?:think|assume|guess|suppose|believe|expect)\b";
    let one_says = r"\b(?:one|you|some|people|someone|somebody|many|most|they|he|she|students?)\s+(?:might|may|could|would|will|often|also)\s+(?:\w+\s+)?(?:say|argue|conclude|claim|answer)\b";
    let first = r"\bfirst (?:glance|sight|thought|look)\b|\bat first,? (?:it|one|you|we) (?:looks?|seems?|might|may|would|thinks?)\b";
    let mistake = r"\bna[iï]vely\b|\btempt(?:ed|ing) to\b|\b(?:common|usual|typical|easy) (?:mistake|error)\b|\bmistake (?:is|would be)\b|\bmistakenly\b|\bwrongly\b|\bincorrectly\b|\bit(?:['’]s| is) easy to (?:think|say|assume|believe)\b";
    let forgets = r"\bif (?:we|you|one|i|he|she|they) (?:only |just )?(?:forget|forgot|ignored?|neglect(?:ed)?|overlook(?:ed)?|leave out|left out)\b";
    let supposes = r"^\W*(?:(?:but|now|so|let['’]s|let us)\s+)?(?:suppose|assume|assuming|imagine|pretend)\b[^,]*$";
    let others = r"\b(?:students?|friend|people|he|she|they|calculator)\s+(?:\w+\s+)?(?:said|claims?|claimed|thinks?|thought|guess(?:es|ed)?)\b[^,]*$";
    pattern(&format!(
        "(?i){one}{thinks}|{one_says}|{first}|{mistake}|{forgets}|{supposes}|{others}"
    ))
});

/// Hedges in the clause directly before the announcement.
static CLAUSE: LazyLock<Regex> = LazyLock::new(|| {
    let negated = r"(?:n['’]t|\bnot|\bnever|\bhardly)\s+(?:\w+\s+){0,2}(?:think|say|believe|mean|true|possible|likely|assume|conclude|agree|imply|clear|certain|sure|case)\b";
    let doubted = r"\b(?:doubt\w*|den(?:y|ies|ied)|unlikely|impossible|untrue|false|disagree|thought|claim(?:s|ed)?|guessed)\b";
    let asked = r"\b(?:whether|if)\s+(?:(?:the|my|our|this|that|an?)\s+)?(?:\w+\s+)?$";
    let adjective = r"\b(?:wrong|incorrect|mistaken|naive|obvious|intuitive|tempting|apparent|first|initial|earlier|previous|old|false|bad)\s+$";
    pattern(&format!("(?i){negated}|{doubted}|{asked}|{adjective}"))
});

/// Returns whether the end of `before`, the text before an announcement, shows that it does not announce the answer.
pub(super) fn is_hedged(before: &str) -> bool {
    let start = before.ceil_char_boundary(before.len().saturating_sub(MAX_CLAUSE_BYTES));
    let near = &before[start..];
    let sentence = [". ", "! ", "? ", ".\n", "\n"].iter().filter_map(|end| near.rfind(end)).max();
    let sentence = sentence.map_or(near, |end| &near[end + 1..]);
    let clause = sentence.rfind([',', ';', ':']).map_or(sentence, |comma| &sentence[comma + 1..]);
    SENTENCE.is_match(sentence) || CLAUSE.is_match(clause)
}

/// Returns whether the text after the last digit of `text` says that no answer was found.
pub(super) fn gives_up(text: &str) -> bool {
    static GIVES_UP: LazyLock<Regex> = LazyLock::new(|| {
        let missing = r"(?:\bnot|n['’]t) (?:have |given |provided )?(?:enough|sufficient) (?:information|data|details)|\binsufficient (?:information|data)";
        let cannot = r"\b(?:cannot|can ?not|can['’]t|could not|couldn['’]t|unable to|impossible to)\s+(?:be\s+)?(?:\w+\s+)?(?:determine|solve|answer|calculate|compute|find|found|know)";
        pattern(&format!("(?i){missing}|{cannot}"))
    });
    let last = text.rfind(|c: char| c.is_ascii_digit()).map_or(0, |last| last + 1);
    GIVES_UP.is_match(&text[last..])
}

/// Returns the text after the first sentence of `statement`.
pub(super) fn after_sentence(statement: &str) -> &str {
    let ends = |(at, mark): &(usize, &str)| {
        let rest = &statement[at + mark.len()..];
        *mark == "\n" || rest.chars().next().is_none_or(char::is_whitespace)
    };
    let text = statement.trim_start();
    let skipped = statement.len() - text.len();
    let mut marks = statement.match_indices(['.', '!', '?', ';', '\n']);
    let end = marks.find(|found| found.0 >= skipped && ends(found));
    end.map_or("", |(at, mark)| &statement[at + mark.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_and_denials_are_hedged() {
        for before in [
            "One might think that the ",
            "At first glance, the ",
            "If we forget the dog, the ",
            "A common mistake is to say that the ",
            "I don't think the ",
            "Suppose the ",
            "Check whether the ",
            "The naive ",
            "He sells it. I doubt that the ",
        ] {
            assert!(is_hedged(before), "{before}");
        }
        for before in [
            "The ",
            "I think the ",
            "She does not sell the rest, so the ",
            "If she sells them all, the ",
            "One might think so. But the ",
            "It is impossible to sell more, so the ",
            "We can say that the ",
        ] {
            assert!(!is_hedged(before), "{before}");
        }
    }

    #[test]
    fn a_text_without_answer_gives_up() {
        assert!(gives_up("She has 9 eggs. There is not enough information."));
        assert!(gives_up("She has 9 eggs, but the rest cannot be determined."));
        assert!(!gives_up("We cannot determine x, but y is 9."));
        assert!(!gives_up("She has 9 eggs and can't sell them."));
    }

    #[test]
    fn the_first_sentence_is_removed() {
        assert_eq!(after_sentence(" 18.5. It is 20."), " It is 20.");
        assert_eq!(after_sentence("\n18\n20"), "20");
        assert_eq!(after_sentence("18"), "");
    }
}
