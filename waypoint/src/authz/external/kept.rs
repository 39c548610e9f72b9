//! Answers that are kept for a while, by what of a request they are said to follow from: the next such request is not asked about. One
//! cache for each worker, without a lock.
//!
//! Always: what is found is an answer of the same provider, asked in the same way, to a request that had the same values, and not
//! older than its time. Only a yes or a no is kept, and none that gives its client a cookie.

use crate::authz::{
    external::answer::{Answer, Change},
    generations::{Generations, Key, Room},
};
use http::{HeaderName, HeaderValue, header};
use karst_core::limits;

/// Of each generation.
const ROOM: Room = Room { entries: limits::KEPT_ANSWERS, bytes: limits::KEPT_ANSWERS_BYTES };

/// The answers that a worker has kept.
pub struct Answers(Generations<Answer>);

impl Default for Answers {
    fn default() -> Self {
        Self(Generations::new(ROOM))
    }
}

impl Answers {
    /// What is known at this time, in milliseconds.
    pub fn get(&mut self, key: &Key, now: u64) -> Option<Answer> {
        self.0.get(key, now).cloned()
    }

    /// Keeps an answer to what was asked at this time, for so long (milliseconds), if it may be.
    pub fn keep(&mut self, key: Key, answer: &Answer, (asked, ttl): (u64, u64)) {
        if let Some(bytes) = may_be_kept(answer) {
            self.0.put(key, answer.clone(), bytes, (asked, asked.saturating_add(ttl)));
        }
    }
}

/// How large an answer is, with what holds it: many short lines take more than their text. None: it is for its client alone, or too large.
fn may_be_kept(answer: &Answer) -> Option<usize> {
    let line = |(name, value): (&HeaderName, &HeaderValue)| size_of::<Change>() + name.as_str().len() + value.len();
    let written = |change: &Change| line((&change.name, &change.value));
    let (gives_cookie, bytes) = match answer {
        Answer::Allowed(changes) => {
            let lines: usize = changes.headers.iter().chain(&changes.response).map(written).sum();
            let text = |text: &str| size_of::<HeaderName>() + text.len();
            let names: usize = changes.remove.iter().map(|name| text(name.as_str())).sum();
            let set: usize = changes.set_query.iter().map(|(name, value)| text(name) + text(value)).sum();
            let removed: usize = changes.remove_query.iter().map(|name| text(name)).sum();
            let gives_cookie = changes.response.iter().any(|change| change.name == header::SET_COOKIE);
            (gives_cookie, lines + names + set + removed)
        }
        Answer::Denied(refusal) => {
            let lines: usize = refusal.headers.iter().map(line).sum();
            (refusal.headers.contains_key(header::SET_COOKIE), lines + refusal.body.len())
        }
    };
    (!gives_cookie && bytes <= limits::KEPT_ANSWER_BYTES).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::external::answer::{Changes, How, Refusal};
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    const KEY: Key = [1; 32];

    fn denied(headers: HeaderMap, body: Vec<u8>) -> Answer {
        Answer::Denied(Refusal { status: StatusCode::FORBIDDEN, headers, body: Bytes::from(body) })
    }

    fn allowed(name: HeaderName) -> Answer {
        let change = Change { name, value: HeaderValue::from_static("a"), how: How::Append };
        Answer::Allowed(Changes { response: vec![change], ..Changes::default() })
    }

    #[test]
    fn answers_are_kept_for_their_time() {
        let mut answers = Answers::default();
        let one = allowed(header::ETAG);
        answers.keep(KEY, &one, (1000, 50));
        assert_eq!([1000, 1050, 1051].map(|now| answers.get(&KEY, now).is_some()), [true, true, false]);
        answers.keep(KEY, &one, (2000, 50));
        assert_eq!(answers.get(&KEY, 2001), Some(one));
        assert_eq!(answers.get(&[2; 32], 2001), None);
    }

    #[test]
    fn what_is_one_clients_or_large_is_not_kept() {
        let mut answers = Answers::default();
        let cookie = HeaderMap::from_iter([(header::SET_COOKIE, HeaderValue::from_static("a=1"))]);
        let large = |bytes: usize| denied(HeaderMap::new(), vec![b'a'; bytes]);
        for not in [allowed(header::SET_COOKIE), denied(cookie, vec![]), large(limits::KEPT_ANSWER_BYTES + 1)] {
            answers.keep(KEY, &not, (0, 1000));
            assert_eq!(answers.get(&KEY, 1), None, "{not:?}");
        }
        answers.keep(KEY, &large(limits::KEPT_ANSWER_BYTES), (0, 1000));
        assert!(answers.get(&KEY, 1).is_some());
    }

    /// A hundred empty lines are no hundred bytes.
    #[test]
    fn answers_of_many_short_lines_are_few() {
        let mut answers = Answers::default();
        let change = Change { name: header::ETAG, value: HeaderValue::from_static(""), how: How::Append };
        let many = Answer::Allowed(Changes { headers: vec![change; 100], ..Changes::default() });
        for n in 0..1000_u16 {
            let mut key = KEY;
            key[..2].copy_from_slice(&n.to_be_bytes());
            answers.keep(key, &many, (0, 1000));
        }
        let mut first = KEY;
        first[..2].copy_from_slice(&0_u16.to_be_bytes());
        assert_eq!(answers.get(&first, 1), None, "of 7 kB each, 4 MiB hold no thousand");
    }
}
