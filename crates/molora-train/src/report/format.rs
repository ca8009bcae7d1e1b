//! Numbers as people read them.

/// `1234567` as `1,234,567`.
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A fraction in per cent with one decimal: `0.9354` as `93.5`.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.1}", fraction * 100.0)
}

/// A difference of fractions in percentage points, with its sign: `+0.84`.
pub(crate) fn points(difference: f64) -> String {
    // Adding zero turns a negative zero into a positive one.
    let rounded = (difference * 1e4).round() / 1e2 + 0.0;
    format!("{rounded:+.2}")
}

/// `part` of `whole` in per cent with two decimals and the sign; `-` where there is no whole.
pub(crate) fn share(part: usize, whole: usize) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{:.2} %", part as f64 / whole as f64 * 100.0),
    }
}

/// Seconds as `8.4 s`, `3 min 07 s` or `2 h 05 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Bytes in MiB, or `unknown`.
pub(crate) fn mebibytes(bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) => format!(
            "{} MiB",
            thousands((bytes as f64 / 1048576.0).round() as usize)
        ),
        None => "unknown".to_owned(),
    }
}

/// A path's last part: the rest may be private.
pub(crate) fn last_part(path: &str) -> &str {
    path.rsplit(['/', '\\', ':']).next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_path_the_last_part_is_shown() {
        assert_eq!(last_part("/some/where/model"), "model");
    }

    #[test]
    fn thousands_are_separated() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (22713216, "22,713,216"),
        ];
        for (number, text) in cases {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn durations_choose_their_units() {
        let cases = [
            (8.44, "8.4 s"),
            (59.96, "1 min 00 s"),
            (187.0, "3 min 07 s"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(7500.0), "2 h 05 min");
    }

    #[test]
    fn shares_and_memory_say_when_they_are_unknown() {
        assert_eq!(
            (share(1, 8), share(1, 0)),
            ("12.50 %".to_owned(), "-".to_owned())
        );
        assert_eq!(mebibytes(Some(3 << 30)), "3,072 MiB");
        assert_eq!(mebibytes(None), "unknown");
    }
}
