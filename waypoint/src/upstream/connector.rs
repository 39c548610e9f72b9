//! Where byte streams to endpoints come from: the network, or, in tests, this process's memory.

use karst_rt::socket::NetnsConnector;

/// Where byte streams to endpoints come from.
pub enum Connector {
    /// The network.
    Network(NetnsConnector),
    /// Endpoints in memory, which need neither ports nor time.
    #[cfg(any(test, feature = "fuzz"))]
    Memory(std::rc::Rc<memory::Memory>),
}

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod memory {
    use crate::{downstream::stream::Io, upstream::error::ConnectError};
    use karst_proxy::dial::DialError;
    use std::{cell::RefCell, collections::HashMap, io, net::SocketAddr, rc::Rc};
    use tokio::io::DuplexStream;

    /// Bytes that a stream holds.
    const BUFFER: usize = 64 << 10;

    /// Takes the other end of a stream, or says why there is none.
    type Accept = Rc<dyn Fn(DuplexStream) -> Result<(), ConnectError>>;

    /// Endpoints by their addresses. Where there is none, a connection is refused.
    #[derive(Default)]
    pub(crate) struct Memory(RefCell<HashMap<SocketAddr, Accept>>);

    impl Memory {
        /// An endpoint that is given the other end of each stream to this address.
        pub(crate) fn listen(&self, at: SocketAddr, accept: impl Fn(DuplexStream) + 'static) {
            let taken = move |io: DuplexStream| -> Result<(), ConnectError> {
                accept(io);
                Ok(())
            };
            self.0.borrow_mut().insert(at, Rc::new(taken));
        }

        /// Connections to this address fail so.
        #[cfg(test)]
        pub(crate) fn fail(&self, at: SocketAddr, why: impl Fn() -> ConnectError + 'static) {
            let failed = move |_: DuplexStream| -> Result<(), ConnectError> { Err(why()) };
            self.0.borrow_mut().insert(at, Rc::new(failed));
        }

        pub(crate) fn open(&self, to: SocketAddr) -> Result<Io, ConnectError> {
            let refused = || DialError::Connect(io::Error::from(io::ErrorKind::ConnectionRefused).into());
            let accept = self.0.borrow().get(&to).cloned().ok_or_else(refused)?;
            let (ours, theirs) = tokio::io::duplex(BUFFER);
            accept(theirs)?;
            Ok(Io::memory(ours))
        }
    }
}
