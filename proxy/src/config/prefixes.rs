//! Prefixes as people write them, and files of them: one a line, a million are fine.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Prefixes, error::Place, error::quoted};

/// The most prefixes that one configuration may have, all services together.
pub const MAX_PREFIXES: usize = 4_000_000;
/// Bytes of a line in a file of prefixes. The longest prefix has 43; the rest is for comments.
const LONGEST_LINE: usize = 1024;
/// Bad lines of a file that are named.
const NAMED: usize = 20;
/// U+FEFF in UTF-8, which some editors put at the beginning of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Text that is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Neither an address nor a prefix.
    #[error("{} is no prefix; write an address such as 192.0.2.1 or a prefix such as 2001:db8::/32", quoted(.0))]
    NotAPrefix(String),
    /// The address is fine, what follows the slash is not.
    #[error(
        "{} has no length that fits: after the `/` of an {family} prefix stands a number from 0 to {most}",
        quoted(.text)
    )]
    Length {
        /// What was written.
        text: String,
        /// IPv4 or IPv6.
        family: &'static str,
        /// Bits of its addresses.
        most: u8,
    },
    /// A netmask after the slash.
    #[error("{} is written with a netmask; did you mean {meant}?", quoted(.text))]
    Netmask {
        /// What was written.
        text: String,
        /// The same with a length.
        meant: IpNet,
    },
    /// The address is one inside the network.
    #[error("{written} has bits set beyond its length; did you mean {} or {}?", .written.trunc(), .written.addr())]
    HostBits {
        /// What was written.
        written: IpNet,
    },
    /// An IPv4 address in IPv6's notation (RFC 4291 section 2.5.5.2).
    #[error("{} is IPv4 in the notation of IPv6, which no packet carries; write {meant}", quoted(.text))]
    Mapped {
        /// What was written.
        text: String,
        /// The IPv4 prefix.
        meant: Plain,
    },
    /// A link-local address with its zone.
    #[error("{} names a zone; leave the `%` and what follows out, and name the interface under `interface`", quoted(.0))]
    Zone(String),
}

/// A prefix that is shown without its length if that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain(Ipv4Net);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == 32 { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

/// An address, or a prefix without a bit set beyond its length.
///
/// # Errors
/// See [`PrefixError`].
pub fn parse_prefix(text: &str) -> Result<IpNet, PrefixError> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let no_prefix = |_| match address.split_once('%') {
        Some((v6, _)) if v6.parse::<Ipv6Addr>().is_ok() => PrefixError::Zone(text.to_owned()),
        _ => PrefixError::NotAPrefix(text.to_owned()),
    };
    let written = match address.parse::<IpAddr>().map_err(no_prefix)? {
        IpAddr::V4(address) => {
            let length = length.map_or(Ok(32), |l| prefix_length(text, l, IpAddr::V4(address)))?;
            Ipv4Net::new(address, length).map(IpNet::V4)
        }
        IpAddr::V6(address) => {
            let length = length.map_or(Ok(128), |l| prefix_length(text, l, IpAddr::V6(address)))?;
            if let (Some(v4), 96..) = (address.to_ipv4_mapped(), length) {
                return Err(mapped(text, v4, length - 96));
            }
            Ipv6Net::new(address, length).map(IpNet::V6)
        }
    };
    let written = written.map_err(|_| PrefixError::NotAPrefix(text.to_owned()))?;
    if written.addr() == written.network() { Ok(written) } else { Err(PrefixError::HostBits { written }) }
}

fn mapped(text: &str, address: Ipv4Addr, length: u8) -> PrefixError {
    match Ipv4Net::new(address, length) {
        Ok(meant) => PrefixError::Mapped { text: text.to_owned(), meant: Plain(meant.trunc()) },
        Err(_) => PrefixError::NotAPrefix(text.to_owned()),
    }
}

fn prefix_length(text: &str, length: &str, address: IpAddr) -> Result<u8, PrefixError> {
    let (family, most) = if address.is_ipv4() { ("IPv4", 32) } else { ("IPv6", 128) };
    // Digits alone: parse would take a sign.
    let digits = (1..=3).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit());
    match length.parse() {
        Ok(parsed) if digits && parsed <= most => return Ok(parsed),
        _ => {}
    }
    let mask = length.parse::<Ipv4Addr>().ok().filter(|_| address.is_ipv4());
    match mask.map(|mask| IpNet::with_netmask(address, IpAddr::V4(mask))) {
        Some(Ok(net)) => Err(PrefixError::Netmask { text: text.to_owned(), meant: net.trunc() }),
        _ => Err(PrefixError::Length { text: text.to_owned(), family, most }),
    }
}

/// What a file of prefixes held beside those that were kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// The first bad lines, in order.
    pub bad: Vec<BadLine>,
    /// How many bad lines there are beyond these.
    pub more: usize,
    /// Good ones, kept or not.
    pub prefixes: usize,
}

/// A line that is no prefix.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Where.
    pub place: Place,
    /// What is wrong with it.
    pub what: String,
}

impl Lines {
    fn refuse(&mut self, line: usize, column: usize, what: String) {
        if self.bad.len() < NAMED {
            self.bad.push(BadLine { place: Place { line, column }, what });
        } else {
            self.more += 1;
        }
    }
}

/// Reads one prefix or address a line into `kept`, until it has `most` of them: further ones are counted only. Blank
/// lines, comments from `#` to the end of a line, CRLF and a byte order mark are fine. The memory that it needs does
/// not depend on the length of the file but for what is kept.
///
/// # Errors
/// When reading fails. What is wrong with lines is in the answer.
pub fn read_prefixes(from: impl Read, kept: &mut Prefixes, most: usize) -> io::Result<Lines> {
    let mut from = BufReader::with_capacity(128 * 1024, from);
    let mut lines = Lines::default();
    let mut buffer = Vec::with_capacity(LONGEST_LINE + 1);
    for number in 1.. {
        buffer.clear();
        from.by_ref().take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut buffer)?;
        if buffer.is_empty() {
            break;
        }
        if buffer.len() > LONGEST_LINE && buffer.last() != Some(&b'\n') {
            let what =
                format!("a line of more than {LONGEST_LINE} bytes; is this a file of prefixes, one a line?");
            lines.refuse(number, 1, what);
            from.skip_until(b'\n')?;
            continue;
        }
        let mut line = buffer.as_slice();
        if number == 1 {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        match parse_line(line) {
            Ok(None) => {}
            Ok(Some(prefix)) => {
                lines.prefixes += 1;
                if kept.len() < most {
                    kept.push(prefix);
                }
            }
            Err((column, what)) => lines.refuse(number, column, what),
        }
    }
    Ok(lines)
}

/// The error has its column.
fn parse_line(line: &[u8]) -> Result<Option<IpNet>, (usize, String)> {
    let end = line.iter().position(|b| *b == b'#').unwrap_or(line.len());
    let line = line[..end].trim_ascii_end();
    let word = line.trim_ascii_start();
    if word.is_empty() {
        return Ok(None);
    }
    let column = line.len() - word.len() + 1;
    match str::from_utf8(word) {
        Ok(word) => parse_prefix(word).map(Some).map_err(|e| (column, e.to_string())),
        Err(e) => {
            Err((column + e.valid_up_to(), "not text in UTF-8; is this a file of prefixes?".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse_prefix(text).unwrap_err().to_string()
    }

    #[test]
    fn addresses_and_prefixes_are_read() {
        for (text, read) in [
            ("192.0.2.1", "192.0.2.1/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(parse_prefix(text).unwrap().to_string(), read);
        }
    }

    #[test]
    fn each_mistake_has_its_message() {
        let no_prefix = "is no prefix; write an address such as 192.0.2.1 or a prefix such as 2001:db8::/32";
        for text in ["", "web", "10.0.0", "10.0/16", "010.0.0.1", "10.0.0.0 /8", "1::2::3"] {
            assert_eq!(error(text), format!("`{text}` {no_prefix}"));
        }
        let v4 = "has no length that fits: after the `/` of an IPv4 prefix stands a number from 0 to 32";
        for text in
            ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/-1", "10.0.0.0/8/8", "10.0.0.0/0008"]
        {
            assert_eq!(error(text), format!("`{text}` {v4}"));
        }
        assert_eq!(
            error("2001:db8::/129"),
            "`2001:db8::/129` has no length that fits: after the `/` of an IPv6 prefix stands a number from 0 to 128"
        );
        assert_eq!(
            error("10.0.0.1/8"),
            "10.0.0.1/8 has bits set beyond its length; did you mean 10.0.0.0/8 or 10.0.0.1?"
        );
        assert_eq!(
            error("2001:db8::1/64"),
            "2001:db8::1/64 has bits set beyond its length; did you mean 2001:db8::/64 or 2001:db8::1?"
        );
        assert_eq!(
            error("10.0.0.0/255.0.0.0"),
            "`10.0.0.0/255.0.0.0` is written with a netmask; did you mean 10.0.0.0/8?"
        );
        assert_eq!(error("10.0.0.0/255.0.255.0"), format!("`10.0.0.0/255.0.255.0` {v4}"));
        let mapped = "is IPv4 in the notation of IPv6, which no packet carries; write";
        assert_eq!(error("::ffff:10.0.0.1"), format!("`::ffff:10.0.0.1` {mapped} 10.0.0.1"));
        assert_eq!(error("::ffff:10.0.0.0/104"), format!("`::ffff:10.0.0.0/104` {mapped} 10.0.0.0/8"));
        assert_eq!(
            error("fe80::1%eth0"),
            "`fe80::1%eth0` names a zone; leave the `%` and what follows out, and name the interface under `interface`"
        );
    }

    fn read(text: &[u8]) -> (Vec<String>, Lines) {
        let mut kept = Prefixes::default();
        let lines = read_prefixes(text, &mut kept, MAX_PREFIXES).unwrap();
        let v4 = kept.v4.iter().map(ToString::to_string);
        (v4.chain(kept.v6.iter().map(ToString::to_string)).collect(), lines)
    }

    #[test]
    fn comments_blank_lines_crlf_and_a_byte_order_mark_are_fine() {
        let text = b"\xef\xbb\xbf10.0.0.0/8\r\n# all\r\n\r\n \t192.0.2.1 # one\r\n2001:db8::/32#x\n::1";
        let (kept, lines) = read(text);
        assert_eq!(kept, ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::1/128"]);
        assert_eq!(lines, Lines { prefixes: 4, ..Lines::default() });
        assert_eq!(read(b""), (vec![], Lines::default()));
        assert_eq!(read(b"\n\n"), (vec![], Lines::default()));
    }

    #[test]
    fn bad_lines_are_named_by_number_and_the_good_ones_kept() {
        let mut text = b"10.0.0.0/8\n  eth0\n\xff\n10.0.0.1 \xc3\x28\n".to_vec();
        text.extend([b'1'; 5000]);
        text.extend(b"\n10.0.0.1/8\n192.0.2.0/24\n");
        let (kept, lines) = read(&text);
        assert_eq!(kept, ["10.0.0.0/8", "192.0.2.0/24"]);
        let shown: Vec<String> = lines
            .bad
            .iter()
            .map(|bad| format!("{}:{}: {}", bad.place.line, bad.place.column, bad.what))
            .collect();
        assert_eq!(
            shown,
            [
                "2:3: `eth0` is no prefix; write an address such as 192.0.2.1 or a prefix such as 2001:db8::/32",
                "3:1: not text in UTF-8; is this a file of prefixes?",
                "4:10: not text in UTF-8; is this a file of prefixes?",
                "5:1: a line of more than 1024 bytes; is this a file of prefixes, one a line?",
                "6:1: 10.0.0.1/8 has bits set beyond its length; did you mean 10.0.0.0/8 or 10.0.0.1?",
            ]
        );
    }

    #[test]
    fn a_line_may_be_as_long_as_is_said() {
        let mut text = vec![b' '; LONGEST_LINE - 8];
        text.extend(b"10.1.2.3\n");
        assert_eq!(read(&text).1, Lines { prefixes: 1, ..Lines::default() });
        text.insert(0, b' ');
        assert_eq!(read(&text).1.bad.len(), 1);
        text.pop();
        assert_eq!(read(&text).1.bad.len(), 1);
    }

    #[test]
    fn only_the_first_bad_lines_are_kept() {
        let (_, lines) = read("x\n".repeat(1000).as_bytes());
        assert_eq!((lines.bad.len(), lines.more), (20, 980));
    }

    #[test]
    fn beyond_the_most_prefixes_are_only_counted() {
        let mut kept = Prefixes::default();
        let lines = read_prefixes("::1\n::2\n::3\n".as_bytes(), &mut kept, 2).unwrap();
        assert_eq!((kept.len(), lines.prefixes), (2, 3));
    }
}
