//! The client's side of a connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::wait::{PATIENCE, stretched};

/// How to connect.
#[derive(Debug, Clone, Copy)]
pub struct Dial {
    to: SocketAddr,
    from: Option<SocketAddr>,
    within: Duration,
    receive_buffer: Option<usize>,
}

impl Dial {
    /// To there, from whatever address and port the kernel chooses.
    #[must_use]
    pub fn to(to: SocketAddr) -> Self {
        Self { to, from: None, within: stretched(PATIENCE), receive_buffer: None }
    }

    /// From exactly this address and port, also when the port was in use a moment ago (SO_REUSEADDR).
    #[must_use]
    pub fn from(mut self, from: SocketAddr) -> Self {
        self.from = Some(from);
        self
    }

    /// Gives up after so long.
    #[must_use]
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// Takes in only about so many bytes before the application reads.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }
}

/// Connects in the calling thread's namespace. Reads and writes of the stream fail after [`PATIENCE`], so that nothing
/// hangs for ever.
///
/// # Errors
/// Those of socket(2), bind(2) and connect(2).
pub fn connect(dial: Dial) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(dial.to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(bytes) = dial.receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(from) = dial.from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    socket.connect_timeout(&dial.to.into(), dial.within)?;
    let stream = TcpStream::from(socket);
    patient(&stream);
    Ok(stream)
}

/// read(2), tried again when it was interrupted: a socket with a timeout is, with no signal handler in sight, whenever the
/// process is stopped and continued (signal(7)).
///
/// # Errors
/// Those of read(2).
pub fn read(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Sends a few bytes to an echo server and waits for them.
///
/// # Errors
/// Those of read(2) and write(2).
///
/// # Panics
/// When others come back.
pub fn ping(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"ping")?;
    let mut back = [0; 4];
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"ping");
    Ok(())
}

/// Lets reads and writes fail rather than hang.
pub(crate) fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(stretched(PATIENCE))).unwrap();
    stream.set_write_timeout(Some(stretched(PATIENCE))).unwrap();
}

/// Ends the connection with RST instead of FIN.
///
/// # Panics
/// When the socket refuses SO_LINGER.
pub fn reset(stream: TcpStream) {
    Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}
