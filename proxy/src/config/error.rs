//! What is wrong with a configuration: every mistake, each at its place.

use std::fmt;

/// All mistakes of a configuration, in the order of the file. Shown one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

/// One mistake; shown as `file:line:column: key: what is wrong and what to do`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The configuration file, or a file of prefixes that it names.
    pub file: String,
    /// Where in it; none where the file as a whole is meant.
    pub place: Option<Place>,
    /// The key in full, such as `dataplane.mark` or `service "web".limit.burst`; empty where none is concerned.
    pub key: String,
    /// What is wrong, and what to do about it.
    pub what: String,
}

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl Mistakes {
    /// Takes them in the order in which they shall be shown.
    pub(super) fn new(mistakes: Vec<Mistake>) -> Self {
        Self(mistakes)
    }

    /// That a file cannot be used at all.
    pub(super) fn of_file(file: &str, what: String) -> Self {
        Self(vec![Mistake { file: file.to_owned(), place: None, key: String::new(), what }])
    }

    /// Each of them; there is at least one.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = OneLine(f);
        let out: &mut dyn fmt::Write = &mut out;
        write!(out, "{}", self.file)?;
        if let Some(Place { line, column }) = self.place {
            write!(out, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(out, ": {}", self.key)?;
        }
        write!(out, ": {}", self.what)
    }
}

/// Escapes what would break the line or reach the terminal as a command: file names and values are the user's.
struct OneLine<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(char::is_control) {
            let plain = piece.trim_end_matches(char::is_control);
            self.0.write_str(plain)?;
            write!(self.0, "{}", piece[plain.len()..].escape_debug())?;
        }
        Ok(())
    }
}

/// A word of the user's, quoted and of bounded length.
pub(crate) fn quoted(word: &str) -> String {
    const SHOWN: usize = 60;
    match word.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`{}…`", &word[..end]),
        None => format!("`{word}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_wrote_cannot_break_the_line() {
        let mistake = Mistake {
            file: "a\nb.toml".into(),
            place: Some(Place { line: 3, column: 7 }),
            key: "x\u{1b}[2J".into(),
            what: "bad\r\n".into(),
        };
        assert_eq!(mistake.to_string(), r"a\nb.toml:3:7: x\u{1b}[2J: bad\r\n");
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        assert_eq!(quoted("ü"), "`ü`");
        assert_eq!(quoted(&"ü".repeat(61)), format!("`{}…`", "ü".repeat(60)));
    }
}
