//! Lists of ports, as people write them: `80,443,8000-8099`.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use super::error::quoted;

/// A set of ports, as ranges in ascending order that neither overlap nor touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

/// A list of ports that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Nothing between two commas, or nothing at all.
    #[error("an empty place in the list of ports; write for example 80,443,8000-8099")]
    Empty,
    /// Not a number from 1 to 65535.
    #[error("{} is no port: a number from 1 to 65535, or a range such as 8000-8099", quoted(.0))]
    NotAPort(String),
    /// A range that runs backwards.
    #[error("the range {from}-{to} runs backwards; did you mean {to}-{from}?")]
    Backwards {
        /// Its first number.
        from: u16,
        /// Its second.
        to: u16,
    },
}

impl Ports {
    /// Every port.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().cloned().flatten()
    }

    /// The ranges, in ascending order; they neither overlap nor touch.
    pub fn ranges(&self) -> impl Iterator<Item = &RangeInclusive<u16>> {
        self.0.iter()
    }

    /// Whether a port is among them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    pub(super) fn from_ranges(mut ranges: Vec<RangeInclusive<u16>>) -> Self {
        ranges.sort_by_key(|r| *r.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl FromStr for Ports {
    type Err = PortError;

    fn from_str(list: &str) -> Result<Self, PortError> {
        let ranges = list.split(',').map(|item| parse_range(item.trim()));
        Ok(Self::from_ranges(ranges.collect::<Result<_, _>>()?))
    }
}

/// A port or a range of them.
pub(super) fn parse_range(item: &str) -> Result<RangeInclusive<u16>, PortError> {
    if item.is_empty() {
        return Err(PortError::Empty);
    }
    let port = |text: &str| match text.trim().parse::<u16>() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(PortError::NotAPort(item.to_owned())),
    };
    let (from, to) = match item.split_once('-') {
        Some((from, to)) => (port(from)?, port(to)?),
        None => (port(item)?, port(item)?),
    };
    if from > to { Err(PortError::Backwards { from, to }) } else { Ok(from..=to) }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{}", range.start())?;
            if range.start() != range.end() {
                write!(f, "-{}", range.end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(list: &str) -> String {
        list.parse::<Ports>().unwrap().to_string()
    }

    #[test]
    fn lists_are_sorted_and_merged() {
        assert_eq!(shown("443, 80"), "80,443");
        assert_eq!(shown("8000-8099,8050-8200,8201"), "8000-8201");
        assert_eq!(shown("1-65535"), "1-65535");
        assert_eq!(shown("65535,65534"), "65534-65535");
        assert_eq!("80,82-84".parse::<Ports>().unwrap().iter().collect::<Vec<_>>(), [80, 82, 83, 84]);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |list: &str| list.parse::<Ports>().unwrap_err();
        assert_eq!(error(""), PortError::Empty);
        assert_eq!(error("80,,443"), PortError::Empty);
        assert_eq!(error("0"), PortError::NotAPort("0".into()));
        assert_eq!(error("http"), PortError::NotAPort("http".into()));
        assert_eq!(error("65536"), PortError::NotAPort("65536".into()));
        assert_eq!(error("9-8"), PortError::Backwards { from: 9, to: 8 });
        assert_eq!(error("1-2-3"), PortError::NotAPort("1-2-3".into()));
    }
}
