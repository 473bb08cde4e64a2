//! Listening sockets and the socket options that both ends use.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Binds a listening socket with address reuse and a long backlog. Port 0 takes any free port.
///
/// # Errors
/// The operating system's, such as "address in use".
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Small frames go out at once.
pub fn set_options(stream: &TcpStream) {
    // A socket that was closed meanwhile refuses; its next read says so.
    let _ = stream.set_nodelay(true);
}

/// Makes every pending and later read and write of the socket end, from any task.
pub fn abort(stream: &TcpStream) {
    // Fails only when the peer has closed already, which is what we want.
    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Both);
}

/// Tells the peer that nothing more will be written.
pub fn finish_writing(stream: &TcpStream) {
    // Fails only when the peer has closed already, which is what we want.
    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
}

/// True for errors of `accept` that pass by themselves and must not end a listener.
#[must_use]
pub fn is_transient_accept_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    ) || matches!(error.raw_os_error(), Some(23 | 24)) // ENFILE, EMFILE
}
