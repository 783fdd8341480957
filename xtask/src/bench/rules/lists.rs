//! The same rules in everybody's language: one port, [`COUNT`] prefixes, the server's own address the last of them.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use super::super::{ground::ECHO, haproxy};
use crate::lab::{SERVER_V4, TO_CLIENT, TO_SERVER};

pub const COUNT: usize = 10_000;

/// As many as Sheer takes.
pub const SERVICES: usize = 4096;

const SEED: u64 = 7;

/// As routing tables have them.
const LENGTHS: [u8; 7] = [18, 20, 22, 24, 24, 24, 32];

/// The shortest of [`LENGTHS`]: no two prefixes are in the same block of this length, so that none overlap, which a set
/// of nftables would refuse.
const BLOCK: u8 = 18;

/// The lists as files: what was measured can be looked at, and loaded by hand.
pub struct Lists {
    pub one_service: PathBuf,
    pub many_services: PathBuf,
    pub nft: PathBuf,
    pub iptables: PathBuf,
}

impl Lists {
    /// Writes them into a directory.
    pub fn write(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let prefixes = prefixes();
        let write = |name: &str, content: String| {
            let path = dir.join(name);
            fs::write(&path, content).map(|()| path)
        };
        write("prefixes.txt", prefixes.iter().fold(String::new(), |text, prefix| text + prefix + "\n"))?;
        Ok(Self {
            one_service: write("one-service.toml", services(&prefixes, 1))?,
            many_services: write("many-services.toml", services(&prefixes, SERVICES))?,
            nft: write("set.nft", nft(&prefixes))?,
            iptables: write("chain.iptables", iptables(&prefixes))?,
        })
    }
}

/// The services share the prefixes out among them, in order.
fn services(prefixes: &[String], count: usize) -> String {
    let mut text = format!(
        "[dataplane]\ninterfaces = [\"{TO_CLIENT}\", \"{TO_SERVER}\"]\n\n[proxy]\naccess_log = \"off\"\n"
    );
    for number in 0..count {
        let share = &prefixes[number * COUNT / count..(number + 1) * COUNT / count];
        let _ = write!(
            text,
            "\n[[service]]\nname = \"service-{number}\"\nport = {ECHO}\ndestination = [\"{}\"]\n",
            share.join("\", \"")
        );
    }
    text
}

/// The documented recipe (nft(8), "tproxy statement"; kernel, Documentation/networking/tproxy.rst): established
/// connections by their sockets, new ones by the set. The port comes first: it is the cheaper question, and answers of
/// servers need no look into the set.
fn nft(prefixes: &[String]) -> String {
    let (port, mark) = (haproxy::PORT, haproxy::MARK);
    format!(
        "table ip rules {{\n\
         \tset destinations {{\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = {{ {} }}\n\t}}\n\
         \tchain prerouting {{\n\
         \t\ttype filter hook prerouting priority mangle; policy accept;\n\
         \t\ttcp flags & (fin | syn | rst | ack) != syn socket transparent 1 meta mark set {mark} accept\n\
         \t\ttcp dport {ECHO} ip daddr @destinations counter tproxy to :{port} meta mark set {mark} accept\n\
         \t}}\n}}\n",
        prefixes.join(", ")
    )
}

/// A rule for each prefix, as scripts write them, for iptables-restore(8).
fn iptables(prefixes: &[String]) -> String {
    let (port, mark) = (haproxy::PORT, haproxy::MARK);
    let mut text = format!(
        "*mangle\n-N DIVERT\n-A DIVERT -j MARK --set-mark {mark}\n-A DIVERT -j ACCEPT\n\
         -A PREROUTING -p tcp ! --syn -m socket --transparent -j DIVERT\n"
    );
    for prefix in prefixes {
        let _ = writeln!(
            text,
            "-A PREROUTING -d {prefix} -p tcp --dport {ECHO} -j TPROXY --on-port {port} --tproxy-mark {mark}/{mark}"
        );
    }
    text + "COMMIT\n"
}

/// Disjoint, none of them a net of the lab but the last.
fn prefixes() -> Vec<String> {
    let mut random = Random(SEED);
    let mut taken: HashSet<u32> =
        [[127, 0, 0, 0], [192, 0, 2, 0], [198, 51, 100, 0], [203, 0, 113, 0]].map(block).into();
    let mut prefixes = Vec::with_capacity(COUNT);
    while prefixes.len() < COUNT - 1 {
        let address = random.below(223 << 24);
        let length = LENGTHS[random.below(LENGTHS.len() as u32) as usize];
        // Public or private, but neither "this network" nor loopback.
        if matches!(address >> 24, 0 | 127) || !taken.insert(address >> (32 - BLOCK)) {
            continue;
        }
        let net = address & u32::MAX << (32 - u32::from(length));
        prefixes.push(format!("{}/{length}", Ipv4Addr::from_bits(net)));
    }
    prefixes.push(format!("{SERVER_V4}/32"));
    prefixes
}

fn block(address: [u8; 4]) -> u32 {
    u32::from_be_bytes(address) >> (32 - BLOCK)
}

/// SplitMix64: the same lists everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let high = (z ^ z >> 31) >> 32;
        ((high * u64::from(end)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefixes_are_disjoint_and_the_server_is_the_last() {
        let prefixes = prefixes();
        let blocks: HashSet<u32> = prefixes
            .iter()
            .map(|prefix| block(prefix.split('/').next().unwrap().parse::<Ipv4Addr>().unwrap().octets()))
            .collect();
        assert_eq!(blocks.len(), COUNT);
        assert_eq!(prefixes.last().map(String::as_str), Some("203.0.113.10/32"));
    }

    #[test]
    fn every_service_has_its_share() {
        let text = services(&prefixes(), SERVICES);
        assert_eq!(text.matches("[[service]]").count(), SERVICES);
        assert_eq!(text.matches('/').count(), COUNT);
    }
}
