//! Exact match of answers in words or numbers.

/// Whether a text gives the same answer as another.
///
/// With a marker, the answers are [extracted](extract_answer) from both, and a prediction without
/// the marker is wrong; a target without it is its own answer. Without a marker the whole texts are
/// compared, without the space around them. Two numbers are compared by value: `1,234.50`, `1234.5`
/// and `1234.5.` are equal.
pub(crate) fn exact_match(prediction: &str, target: &str, marker: Option<&str>) -> bool {
    let whole = |text: &str| extract_answer(text, None).unwrap_or_default();
    let target = extract_answer(target, marker).unwrap_or_else(|| whole(target));
    extract_answer(prediction, marker).is_some_and(|answer| answer == target)
}

/// The answer that a text gives, in a form in which equal answers are equal texts.
///
/// With a marker: the last number on the line that follows the first marker, or that line where it
/// holds no number; `None` without the marker. Only the first marker counts, because a model that
/// does not stop continues with the next question. Without a marker: the whole text. Space around it
/// is left out, and a number loses its thousands separators, leading and trailing zeros and a full
/// stop after it.
pub(super) fn extract_answer(text: &str, marker: Option<&str>) -> Option<String> {
    let Some(marker) = marker else {
        let text = text.trim();
        return Some(number(text).unwrap_or_else(|| text.to_owned()));
    };
    let (_, after) = text.split_once(marker)?;
    let line = after.trim_start().lines().next().unwrap_or_default().trim();
    let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '.' | ',');
    let words = line.split(|c: char| !is_part(c)).rev();
    let last = words.into_iter().find_map(last_number);
    Some(last.unwrap_or_else(|| line.to_owned()))
}

/// The number in digits, points, commas and minus signs; of several with a minus between them, as
/// in `3-5`, the last.
fn last_number(word: &str) -> Option<String> {
    let word = word.trim_end_matches(['-', ',']);
    let start = word.rfind('-').unwrap_or(0);
    // A minus behind a digit is a dash.
    let is_dash = word[..start].ends_with(|c: char| c.is_ascii_digit());
    let word = &word[start + usize::from(is_dash)..];
    number(word.trim_start_matches(','))
}

/// A decimal number in its shortest form, if the text is one.
fn number(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let whole = without_commas(whole)?;
    if !is_digits(&whole) || !is_digits(fraction) || whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (whole, fraction) = (
        whole.trim_start_matches('0'),
        fraction.trim_end_matches('0'),
    );
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(match (sign, whole, fraction) {
        (_, "0", "") => "0".into(),
        (_, _, "") => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction}"),
    })
}

/// Digits without separators of thousands; `None` where a comma separates something else.
fn without_commas(digits: &str) -> Option<String> {
    let mut groups = digits.split(',');
    let first = groups.next().unwrap_or_default();
    let has_commas = digits.contains(',');
    if has_commas && (first.is_empty() || first.len() > 3) || !groups.all(|group| group.len() == 3)
    {
        return None;
    }
    Some(digits.replace(',', ""))
}
