//! What changes an answer's body on its way to the client, part by part.

use bytes::Bytes;
use http::HeaderMap;
use std::io;

/// Changes a body part by part. What is given back may be empty: then nothing is sent.
pub trait Transform {
    /// A part has come.
    ///
    /// # Errors
    /// It cannot be changed.
    fn data(&mut self, data: Bytes) -> io::Result<Bytes>;

    /// Nothing more is there for now: what is held back is sent, so that nobody waits for it.
    ///
    /// # Errors
    /// It cannot be changed.
    fn pause(&mut self) -> io::Result<Bytes>;

    /// The end: what comes last, and the trailers after it.
    ///
    /// # Errors
    /// It cannot be changed.
    fn end(&mut self, trailers: Option<HeaderMap>) -> io::Result<(Bytes, Option<HeaderMap>)>;
}
