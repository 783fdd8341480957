//! Servers with real sockets that remember whom they saw.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::connect::{patient, read};
use crate::lab::{Family, Host};
use crate::namespace::Namespace;
use crate::wait::{PATIENCE, wait_until};

/// How a connection ended for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As the server meant it to.
    Well,
    /// By a reset.
    Reset,
    /// By another error.
    Failed(io::ErrorKind),
}

/// One connection that a server accepted.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    /// The address and port that it came from, as the server saw them.
    pub peer: SocketAddr,
    /// How it ended; none while it lasts.
    pub ended: Option<Ended>,
}

type Log = Arc<Mutex<Vec<Connection>>>;

/// A listening server; it stops when this value goes.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    listener: TcpListener,
    log: Log,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Tells each client the address that it saw, and closes: `"you are 192.0.2.2:40000\n"`.
    #[must_use]
    pub fn hello(host: &Host, family: Family, port: u16) -> Self {
        Self::start(host, family, port, greet)
    }

    /// As [`Server::hello`], at every address of a family that the host has.
    #[must_use]
    pub fn hello_everywhere(host: &Host, family: Family, port: u16) -> Self {
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::start_at(host, SocketAddr::new(any, port), greet)
    }

    /// As [`Server::hello`], anywhere: also in the middle.
    #[must_use]
    pub fn hello_at(namespace: &Namespace, address: SocketAddr) -> Self {
        Self::start_at(namespace, address, greet)
    }

    /// Sends everything back, and closes its direction when the client has closed its own.
    #[must_use]
    pub fn echo(host: &Host, family: Family, port: u16) -> Self {
        Self::start(host, family, port, send_back)
    }

    /// As [`Server::echo`], anywhere.
    #[must_use]
    pub fn echo_at(namespace: &Namespace, address: SocketAddr) -> Self {
        Self::start_at(namespace, address, send_back)
    }

    /// Does what `serve` says with each connection, on a thread for each.
    ///
    /// # Panics
    /// When the port is taken.
    #[must_use]
    pub fn start(
        host: &Host,
        family: Family,
        port: u16,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(host, SocketAddr::new(host.ip(family), port), serve)
    }

    fn start_at(
        host: &Namespace,
        address: SocketAddr,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener =
            host.run(|| listen(address)).unwrap_or_else(|e| panic!("cannot listen on {address}: {e}"));
        let log = Log::default();
        let (accepting, noting) = (listener.try_clone().unwrap(), Arc::clone(&log));
        let acceptor = host.spawn("server", move || accept(&accepting, &noting, &Arc::new(serve)));
        Self { address, listener, log, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All connections so far, in the order of their coming.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.log.lock().unwrap().clone()
    }

    /// How many connections there were.
    #[must_use]
    pub fn count(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// Who the latest connection came from.
    #[must_use]
    pub fn last(&self) -> SocketAddr {
        wait_until("a connection reaches the server", PATIENCE, || self.connections().pop()).peer
    }

    /// The address that the latest connection came from.
    #[must_use]
    pub fn peer_of_last(&self) -> IpAddr {
        self.last().ip()
    }

    /// How the latest connection ended, waiting for that.
    #[must_use]
    pub fn ended(&self) -> Ended {
        wait_until("the server's last connection ends", PATIENCE, || {
            self.connections().pop().and_then(|c| c.ended)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // accept(2) on a listener that is shut down fails, which ends the thread.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn send_back(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match read(&mut stream, &mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

fn greet(mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    writeln!(stream, "you are {peer}")
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn accept<F>(listener: &TcpListener, log: &Log, serve: &Arc<F>)
where
    F: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
{
    while let Ok((stream, peer)) = listener.accept() {
        patient(&stream);
        let number = {
            let mut log = log.lock().unwrap();
            log.push(Connection { peer, ended: None });
            log.len() - 1
        };
        let (log, serve) = (Arc::clone(log), Arc::clone(serve));
        let served = thread::Builder::new().name("serve".to_owned()).spawn(move || {
            let ended = ended(serve(stream));
            log.lock().unwrap()[number].ended = Some(ended);
        });
        served.expect("cannot start a thread for a connection");
    }
}

fn ended(result: io::Result<()>) -> Ended {
    match result.map_err(|e| e.kind()) {
        Ok(()) => Ended::Well,
        Err(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Ended::Reset,
        Err(kind) => Ended::Failed(kind),
    }
}
