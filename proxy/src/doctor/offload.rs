//! What the network card does by itself, asked by the ethtool family of generic netlink
//! (Documentation/networking/ethtool-netlink.rst), in bytes: one question is not worth a crate.

use std::io;

use rustix::net::netlink;

use super::netlink::{ONE, Raw, attribute, attributes, find, text};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;

const NESTED: u16 = 0x8000;
/// Command, version, reserved.
const GENL_HEADER: usize = 4;

/// The ethtool family, found once.
pub(super) struct Ethtool {
    socket: Raw,
    family: u16,
}

impl Ethtool {
    /// # Errors
    /// Where the kernel has no ethtool over netlink (before 5.6), or no generic netlink at all.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Raw::open(netlink::GENERIC)?;
        let question =
            [vec![CTRL_CMD_GETFAMILY, 1, 0, 0], attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0")].concat();
        let answers = socket.ask(GENL_ID_CTRL, ONE, &question)?;
        let family = answers.iter().find_map(|answer| {
            let id = find(answer.get(GENL_HEADER..)?, CTRL_ATTR_FAMILY_ID)?;
            Some(u16::from_ne_bytes(*id.first_chunk::<2>()?))
        });
        let family = family.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { socket, family })
    }

    /// The offloads that are switched on, in the words of `ethtool -k`'s kernel side, such as `rx-lro`.
    pub(super) fn active(&self, interface: &str) -> io::Result<Vec<String>> {
        let name = attribute(ETHTOOL_A_HEADER_DEV_NAME, format!("{interface}\0").as_bytes());
        let header = attribute(ETHTOOL_A_FEATURES_HEADER | NESTED, &name);
        let question = [vec![ETHTOOL_MSG_FEATURES_GET, 1, 0, 0], header].concat();
        let answers = self.socket.ask(self.family, ONE, &question)?;
        Ok(answers.iter().filter_map(|answer| answer.get(GENL_HEADER..)).flat_map(names).collect())
    }
}

/// The set bits of `ETHTOOL_A_FEATURES_ACTIVE`, which comes as a list of those alone.
fn names(features: &[u8]) -> Vec<String> {
    let bits = find(features, ETHTOOL_A_FEATURES_ACTIVE).and_then(|set| find(set, ETHTOOL_A_BITSET_BITS));
    let bits = attributes(bits.unwrap_or_default());
    bits.iter().filter_map(|(_, bit)| find(bit, ETHTOOL_A_BITSET_BIT_NAME)).map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_active_offloads_are_read() {
        let bit = |name: &[u8]| attribute(1 | NESTED, &attribute(ETHTOOL_A_BITSET_BIT_NAME, name));
        let bits = [bit(b"rx-gro\0"), bit(b"rx-lro\0")].concat();
        let set = [attribute(1, &[]), attribute(ETHTOOL_A_BITSET_BITS | NESTED, &bits)].concat();
        let answer = attribute(ETHTOOL_A_FEATURES_ACTIVE | NESTED, &set);
        assert_eq!(names(&answer), ["rx-gro", "rx-lro"]);
        assert!(names(&answer[..20]).is_empty());
    }

    #[test]
    fn the_kernel_answers_about_lo() {
        // Sandboxes leave generic netlink out; where it is there, lo has offloads.
        let Ok(ethtool) = Ethtool::open() else { return };
        let active = ethtool.active("lo").unwrap();
        assert!(active.iter().any(|name| name.starts_with("tx-")), "{active:?}");
        assert!(ethtool.active("no-such-device").is_err());
    }
}
