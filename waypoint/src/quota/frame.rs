//! What replicas say to each other about shared limits: frames of records of fixed size, big-endian. A frame is a version (1 byte), the
//! number of its records (2), and these; it is answered by one with as many, in order.

use crate::{
    quota::table::{Grant, Rate},
    route::bucket::Bucket,
};
use bytes::{Buf, BufMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most records of a frame.
pub const MOST: usize = 256;
const VERSION: u8 = 1;

/// What is wanted of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub bucket: Bucket,
    pub rate: Rate,
    /// Tokens, at most.
    pub want: u32,
    /// Tokens of former leases that were not used.
    pub back: u32,
}

/// A record.
pub trait Record: Sized {
    /// Bytes.
    const SIZE: usize;
    /// Writes it.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads it; there are [`Record::SIZE`] bytes.
    fn get(bytes: &[u8]) -> Self;
}

impl Record for Ask {
    const SIZE: usize = 40;

    fn put(&self, out: &mut Vec<u8>) {
        out.put_u128(self.bucket);
        out.put_u64(self.rate.step);
        out.put_u64(self.rate.full);
        out.put_u32(self.want);
        out.put_u32(self.back);
    }

    fn get(mut bytes: &[u8]) -> Self {
        let bucket = bytes.get_u128();
        let rate = Rate { step: bytes.get_u64(), full: bytes.get_u64() };
        Self { bucket, rate, want: bytes.get_u32(), back: bytes.get_u32() }
    }
}

impl Record for Grant {
    const SIZE: usize = 12;

    fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.tokens);
        out.put_u64(self.after);
    }

    fn get(mut bytes: &[u8]) -> Self {
        Self { tokens: bytes.get_u32(), after: bytes.get_u64() }
    }
}

/// Sends a frame, of at most [`MOST`] records.
///
/// # Errors
/// The stream's.
pub async fn write<T: Record>(io: &mut (impl AsyncWrite + Unpin), records: &[T]) -> io::Result<()> {
    let mut out = Vec::with_capacity(3 + records.len() * T::SIZE);
    out.put_u8(VERSION);
    out.put_u16(records.len() as u16);
    records.iter().for_each(|record| record.put(&mut out));
    io.write_all(&out).await?;
    io.flush().await
}

/// Reads a frame. None: there is no other.
///
/// # Errors
/// The stream's; one that breaks off within a frame; what is no frame of this version.
pub async fn read<T: Record>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<T>>> {
    let mut head = [0; 3];
    if io.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    io.read_exact(&mut head[1..]).await?;
    let count = usize::from(u16::from_be_bytes([head[1], head[2]]));
    if head[0] != VERSION || count > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no frame of this version"));
    }
    let mut body = vec![0; count * T::SIZE];
    io.read_exact(&mut body).await?;
    Ok(Some(body.chunks_exact(T::SIZE).map(T::get).collect()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn asks() -> Vec<Ask> {
        let rate = Rate { step: 3, full: u64::MAX };
        let ask = |n: u32| Ask { bucket: Bucket::MAX - Bucket::from(n), rate, want: n, back: u32::MAX - n };
        (0..MOST as u32).map(ask).collect()
    }

    #[tokio::test]
    async fn frames_are_read_as_they_were_written() {
        let mut bytes = vec![];
        write(&mut bytes, &asks()).await.unwrap();
        write(&mut bytes, &[Ask { want: 1, ..asks()[0] }]).await.unwrap();
        let mut io = &bytes[..];
        assert_eq!(read::<Ask>(&mut io).await.unwrap(), Some(asks()));
        assert_eq!(read::<Ask>(&mut io).await.unwrap().map(|all| all.len()), Some(1));
        assert_eq!(read::<Ask>(&mut io).await.unwrap(), None);
        let grants = vec![Grant { tokens: 7, after: 1 << 40 }, Grant::default()];
        let mut bytes = vec![];
        write(&mut bytes, &grants).await.unwrap();
        assert_eq!(read::<Grant>(&mut &bytes[..]).await.unwrap(), Some(grants));
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        let mut whole = vec![];
        write(&mut whole, &asks()[..2]).await.unwrap();
        for length in 1..whole.len() {
            assert!(read::<Ask>(&mut &whole[..length]).await.is_err(), "{length}");
        }
        let mut newer = whole.clone();
        newer[0] = 2;
        assert!(read::<Ask>(&mut &newer[..]).await.is_err());
        let long = [VERSION, 0xff, 0xff];
        assert!(read::<Ask>(&mut &long[..]).await.is_err());
    }
}
