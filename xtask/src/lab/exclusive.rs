use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

use anyhow::{Context, Result, bail};

/// The right to use the lab of a name. A socket in the abstract namespace: it leaves no file behind and is free
/// again however its holder ended.
pub struct Exclusive {
    _held: UnixListener,
}

impl Exclusive {
    /// # Errors
    /// When another process holds it.
    pub fn take(lab: &str) -> Result<Self> {
        let address = SocketAddr::from_abstract_name(format!("{lab}-lab"))?;
        match UnixListener::bind_addr(&address) {
            Ok(held) => Ok(Self { _held: held }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                bail!("the lab `{lab}` is in use by another `cargo xtask`; end that one first")
            }
            Err(error) => Err(error).context("cannot mark the lab as in use"),
        }
    }
}
