//! Mistakes as they are found, by the byte at which they stand; lines and columns are counted once, at the end.

use super::error::{Mistake, Mistakes, Place};

/// A key and the byte of the text to which a mistake about it points.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub at: usize,
    pub key: String,
}

#[derive(Debug, Default)]
pub(super) struct Collector {
    found: Vec<Found>,
}

#[derive(Debug)]
struct Found {
    at: usize,
    key: String,
    what: String,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Syntax,
    /// Follows from what is written.
    Written,
    /// Follows from what is not there: perhaps only because a syntax error hides it.
    Lacking,
    /// In another file, which the key names.
    Elsewhere {
        file: String,
        place: Place,
    },
}

impl Collector {
    fn push(&mut self, at: usize, key: &str, what: String, kind: Kind) {
        self.found.push(Found { at, key: key.to_owned(), what, kind });
    }

    pub fn syntax(&mut self, at: usize, what: String) {
        self.push(at, "syntax", what, Kind::Syntax);
    }

    /// A mistake at the key's own place.
    pub fn add(&mut self, spot: &Spot, what: impl Into<String>) {
        self.push(spot.at, &spot.key, what.into(), Kind::Written);
    }

    /// A mistake about the key, at another place, such as an element of its list.
    pub fn add_at(&mut self, at: usize, key: &str, what: impl Into<String>) {
        self.push(at, key, what.into(), Kind::Written);
    }

    /// A mistake that may go away when another one does: something is missing.
    pub fn lacking(&mut self, at: usize, key: &str, what: impl Into<String>) {
        self.push(at, key, what.into(), Kind::Lacking);
    }

    /// A mistake in a file that the key names.
    pub fn elsewhere(&mut self, spot: &Spot, file: &str, place: Place, what: String) {
        self.push(spot.at, &spot.key, what, Kind::Elsewhere { file: file.to_owned(), place });
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All of them in the order of the text. Beside syntax errors, those are left out that may only follow from them.
    pub fn into_mistakes(mut self, text: &str, file: &str) -> Mistakes {
        self.found.sort_by_key(|found| found.at);
        let mut places = Places::new(text);
        let placed: Vec<(Place, Found)> = self.found.into_iter().map(|f| (places.of(f.at), f)).collect();
        let is_syntax = |(place, found): &(Place, Found)| (found.kind == Kind::Syntax).then_some(place.line);
        let broken: Vec<usize> = placed.iter().filter_map(is_syntax).collect();
        let stray = placed.iter().position(|(_, f)| f.kind == Kind::Syntax && in_header(text, f.at));
        let sound = stray.map_or(usize::MAX, |first| placed[first].1.at);
        let kept = placed.into_iter().filter(|(place, found)| match found.kind {
            Kind::Syntax => true,
            Kind::Lacking => broken.is_empty(),
            Kind::Written | Kind::Elsewhere { .. } => {
                found.at < sound && broken.binary_search(&place.line).is_err()
            }
        });
        let mistakes = kept.map(|(place, found)| {
            let (file, place) = match found.kind {
                Kind::Elsewhere { file, place } => (file, place),
                _ => (file.to_owned(), place),
            };
            Mistake { file, place: Some(place), key: found.key, what: found.what }
        });
        let mut mistakes: Vec<Mistake> = mistakes.collect();
        mistakes.dedup();
        Mistakes::new(mistakes)
    }
}

/// Whether what stands there is the header of a table: the keys below a broken one are ascribed to another.
fn in_header(text: &str, at: usize) -> bool {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rfind('\n').map_or(0, |end| end + 1);
    text[line..].trim_start_matches([' ', '\t']).starts_with('[')
}

/// Counts lines and columns for ascending offsets, in one pass.
#[derive(Debug)]
pub(super) struct Places<'t> {
    rest: &'t str,
    offset: usize,
    place: Place,
}

impl<'t> Places<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { rest: text, offset: 0, place: Place { line: 1, column: 1 } }
    }

    /// The place of the character that begins at or holds byte `at`, which is never less than the one before. What
    /// lies behind the end is at the end.
    pub fn of(&mut self, at: usize) -> Place {
        let mut chars = self.rest.char_indices();
        let begin = self.offset;
        for (i, c) in chars.by_ref() {
            if begin + i + c.len_utf8() > at {
                self.rest = &self.rest[i..];
                self.offset = begin + i;
                return self.place;
            }
            match c {
                '\n' => self.place = Place { line: self.place.line + 1, column: 1 },
                // A byte order mark is no character that an editor shows.
                '\u{feff}' if begin + i == 0 => {}
                _ => self.place.column += 1,
            }
        }
        self.offset += self.rest.len();
        self.rest = "";
        self.place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_offsets_may_lie_anywhere() {
        let text = "\u{feff}aü\r\nb\n";
        let mut places = Places::new(text);
        let found: Vec<(usize, usize)> = [0, 3, 4, 5, 7, 8, 9, 10, 99, 99]
            .map(|at| places.of(at))
            .map(|Place { line, column }| (line, column))
            .to_vec();
        let expected = [(1, 1), (1, 1), (1, 2), (1, 2), (1, 4), (2, 1), (2, 2), (3, 1), (3, 1), (3, 1)];
        assert_eq!(found, expected);
    }
}
