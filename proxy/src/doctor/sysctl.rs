//! Sysctls, read as they are and judged later.

use std::{collections::BTreeMap, fs};

/// The file of a sysctl. Dots separate, unless the name has slashes: then dots belong to an interface's name.
pub(super) fn path(name: &str) -> String {
    let name = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    format!("/proc/sys/{name}")
}

/// Those that were there, with their values.
#[derive(Clone, Debug, Default)]
pub(super) struct Sysctls(BTreeMap<String, String>);

impl Sysctls {
    /// Reads them; one that is missing or cannot be read is left out.
    pub(super) fn read<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let read =
            |name: &str| Some((name.to_owned(), fs::read_to_string(path(name)).ok()?.trim().to_owned()));
        Self(names.into_iter().filter_map(read).collect())
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// Made up, for tests.
    #[cfg(test)]
    pub(super) fn of(values: &[(&str, &str)]) -> Self {
        Self(values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_a_path_also_with_an_interface_that_has_a_dot() {
        assert_eq!(path("net.core.somaxconn"), "/proc/sys/net/core/somaxconn");
        assert_eq!(path("net/ipv6/conf/eth0.5/disable_ipv6"), "/proc/sys/net/ipv6/conf/eth0.5/disable_ipv6");
    }
}
