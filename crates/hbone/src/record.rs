//! TLS 1.3 records (RFC 8446 §5), after the handshake. rustls agrees on the keys, keeps them up to date and keeps the tickets
//! (its `kernel` interface); only sealing and opening are done here, because rustls copies every record twice on the way in
//! and once on the way out. Here a record is opened where the socket put it, and sealed straight from the application's bytes
//! (measured: docs/performance.md). Proven against plain rustls as the peer in `tests/records.rs`.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Bytes in front of a record's body.
pub const HEADER: usize = 5;
/// Most plaintext in a record (§5.1).
pub const MAX_PLAIN: usize = 1 << 14;
/// Most body of a record that is accepted (§5.2).
pub const MAX_BODY: usize = MAX_PLAIN + 256;
/// Bytes that sealing adds: header, content type, tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
const TAG: usize = 16;
/// Records under one key before it is changed: the limit of AES-GCM is 2^24.5 full records (§5.5).
const KEY_LIMIT: u64 = 1 << 24;

/// Content types (§5.1).
pub mod kind {
    /// An alert.
    pub const ALERT: u8 = 21;
    /// A handshake message: after the handshake a ticket or a key update.
    pub const HANDSHAKE: u8 = 22;
    /// Application data.
    pub const DATA: u8 = 23;
}

/// Alert descriptions (§6).
pub mod alert {
    /// An orderly end.
    pub const CLOSE_NOTIFY: u8 = 0;
    /// Something that may not come now.
    pub const UNEXPECTED_MESSAGE: u8 = 10;
    /// A record does not open.
    pub const BAD_RECORD_MAC: u8 = 20;
    /// A record is too long.
    pub const RECORD_OVERFLOW: u8 = 22;
    /// A message cannot be parsed.
    pub const DECODE_ERROR: u8 = 50;
    /// The peer is going to close; said in addition to `CLOSE_NOTIFY`.
    pub const USER_CANCELED: u8 = 90;
}

/// Why a record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// §5.1: only encrypted records may come.
    #[error("a record that is not encrypted")]
    Plain,
    /// §5.2.
    #[error("a record is longer than TLS allows")]
    Long,
    /// §5.2.
    #[error("a record does not decrypt")]
    Mac,
    /// §5.4.
    #[error("a record has no content type")]
    Padding,
    /// The negotiated suite is none that we offer.
    #[error("the cipher suite is not AES-GCM")]
    Suite,
    /// The library refused; does not happen with valid lengths.
    #[error("a record cannot be sealed")]
    Seal,
}

impl RecordError {
    /// The alert that tells the peer.
    pub fn alert(self) -> u8 {
        match self {
            RecordError::Plain | RecordError::Padding => alert::UNEXPECTED_MESSAGE,
            RecordError::Long => alert::RECORD_OVERFLOW,
            RecordError::Mac | RecordError::Suite | RecordError::Seal => alert::BAD_RECORD_MAC,
        }
    }
}

/// A key, and the number of the next record. The number only ever goes up, and a key starts with the number that rustls gives
/// for it: no nonce is used twice (§5.3).
struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    seq: u64,
}

impl Key {
    fn new(seq: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(RecordError::Suite),
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Suite)?);
        Ok(Self { key, iv: iv.as_ref().try_into().map_err(|_| RecordError::Suite)?, seq })
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (a, b) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.seq.to_be_bytes()) {
            *a ^= b;
        }
        self.seq += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

fn header(body: usize) -> [u8; HEADER] {
    let length = (body as u16).to_be_bytes();
    [kind::DATA, 3, 3, length[0], length[1]]
}

/// Makes records.
pub struct Sealer(Key);

impl Sealer {
    /// From the secrets of the handshake or of a key update.
    ///
    /// # Errors
    /// If the suite is none of ours.
    pub fn new(seq: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        Key::new(seq, secrets).map(Self)
    }
    /// Has the key done its share? Then `update_tx_secret` and a KeyUpdate message are due.
    pub fn needs_rekey(&self) -> bool {
        self.0.seq >= KEY_LIMIT
    }
    /// Seals at most [`MAX_PLAIN`] bytes into `out`, which has [`OVERHEAD`] bytes more; gives the record's length.
    ///
    /// # Errors
    /// If the lengths do not fit.
    pub fn seal(&mut self, kind: u8, plain: &[u8], out: &mut [u8]) -> Result<usize, RecordError> {
        let (length, total) = (plain.len(), plain.len() + OVERHEAD);
        if length > MAX_PLAIN || out.len() < total {
            return Err(RecordError::Seal);
        }
        let head = header(length + 1 + TAG);
        let (h, body) = out[..total].split_at_mut(HEADER);
        h.copy_from_slice(&head);
        let (text, tail) = body.split_at_mut(length);
        let nonce = self.0.nonce();
        self.0
            .key
            .seal_out_of_place_scatter(nonce, Aad::from(head), plain, text, &[kind], tail)
            .map_err(|_| RecordError::Seal)?;
        Ok(total)
    }
    /// Seals the `length` bytes of plaintext that already stand in `record`, after the room for the header.
    ///
    /// # Errors
    /// If the lengths do not fit.
    pub fn seal_in_place(&mut self, kind: u8, record: &mut [u8], length: usize) -> Result<usize, RecordError> {
        let total = length + OVERHEAD;
        if length > MAX_PLAIN || record.len() < total {
            return Err(RecordError::Seal);
        }
        let head = header(length + 1 + TAG);
        record[..HEADER].copy_from_slice(&head);
        record[HEADER + length] = kind;
        let (text, tag) = record[HEADER..total].split_at_mut(length + 1);
        let nonce = self.0.nonce();
        let t = self.0.key.seal_in_place_separate_tag(nonce, Aad::from(head), text).map_err(|_| RecordError::Seal)?;
        tag.copy_from_slice(t.as_ref());
        Ok(total)
    }
}

/// Opens records.
pub struct Opener(Key);

impl Opener {
    /// As [`Sealer::new`].
    ///
    /// # Errors
    /// If the suite is none of ours.
    pub fn new(seq: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        Key::new(seq, secrets).map(Self)
    }
    /// The length of the record that `bytes` begin with, when enough has come to tell.
    ///
    /// # Errors
    /// If what comes is no encrypted record, or too long to be one: before it is waited for.
    pub fn length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
        let [kind, _, _, a, b, ..] = *bytes else { return Ok(None) };
        if kind != kind::DATA {
            return Err(RecordError::Plain);
        }
        let length = usize::from(u16::from_be_bytes([a, b]));
        if length > MAX_BODY {
            return Err(RecordError::Long);
        }
        Ok(Some(HEADER + length))
    }
    /// Opens one whole record where it stands. Gives its content type and the length of the plaintext, which begins at
    /// [`HEADER`].
    ///
    /// # Errors
    /// If it is not authentic or not well formed.
    pub fn open(&mut self, record: &mut [u8]) -> Result<(u8, usize), RecordError> {
        let (head, body) = record.split_at_mut_checked(HEADER).ok_or(RecordError::Mac)?;
        let aad: [u8; HEADER] = (&*head).try_into().map_err(|_| RecordError::Mac)?;
        let nonce = self.0.nonce();
        let inner = self.0.key.open_in_place(nonce, Aad::from(aad), body).map_err(|_| RecordError::Mac)?;
        let at = inner.iter().rposition(|b| *b != 0).ok_or(RecordError::Padding)?;
        if at > MAX_PLAIN {
            return Err(RecordError::Long);
        }
        Ok((inner[at], at))
    }
}
