//! `/debug/history`: what is kept ([`Summary`]); with `?at=TIME` the configuration of that time ([`Page`]). Both are read by
//! `karst explain --at`.

use super::{
    kept::{History, Past, PastError},
    moment::{AtError, Moment, When},
};
use crate::{offline::Resource, push::REMEMBERED};
use base64::{Engine, prelude::BASE64_STANDARD};
use karst_rt::admin::{self, Answer};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Now, by the controller's clock: what is in the future is judged by it, and ages count from it.
    pub now: Moment,
    /// The earliest time that can be asked for.
    pub oldest: Moment,
    /// When the newest version came in force; null: there is none yet.
    pub newest: Option<Moment>,
    /// Versions that can be told, the newest among them.
    pub versions: usize,
    /// What the older ones take, in bytes.
    pub bytes: usize,
    /// What they take at most, in bytes.
    pub max_bytes: usize,
}

/// The configuration of a time: what proxies were told, without keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// The controller's pod.
    pub pod: String,
    /// The time.
    pub at: Moment,
    /// When this version came in force.
    pub since: Moment,
    /// Number of the version, by this pod.
    pub version: u64,
    resources: Vec<Encoded>,
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Encoded {
    r#type: String,
    name: String,
    /// The message, in base64.
    body: String,
}

/// The page cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// A type that this program does not know.
    #[error("resource {name} has the unknown type {type_url}: the controller may be of another version")]
    Type {
        /// Name of the resource.
        name: String,
        /// Its type.
        type_url: String,
    },
    /// A body that cannot be read.
    #[error("resource {name}: {error}")]
    Body {
        /// Name of the resource.
        name: String,
        /// What is wrong.
        error: base64::DecodeError,
    },
}

impl Summary {
    /// The moment that is meant, if its configuration is kept.
    ///
    /// # Errors
    /// It has not come yet, or is longer ago than what is kept.
    pub fn find(&self, when: When) -> Result<Moment, AtError> {
        let (at, oldest) = (when.resolve(self.now)?, self.oldest);
        if at < oldest { Err(AtError::NotKept { at, oldest }) } else { Ok(at) }
    }
}

impl Page {
    /// What proxies were told.
    ///
    /// # Errors
    /// It is of another version, or damaged.
    pub fn resources(&self) -> Result<Vec<Resource>, PageError> {
        self.resources.iter().map(Encoded::decode).collect()
    }

    fn of(past: Past, at: Moment, pod: &str) -> Self {
        let encode = |(type_url, name, bytes): (&str, String, Arc<[u8]>)| Encoded {
            r#type: type_url.into(),
            name,
            body: BASE64_STANDARD.encode(bytes),
        };
        let resources = past.resources.into_iter().map(encode).collect();
        Self { pod: pod.into(), at, since: past.since, version: past.version, resources }
    }
}

impl Encoded {
    fn decode(&self) -> Result<Resource, PageError> {
        let name = || self.name.clone();
        let unknown = || PageError::Type { name: name(), type_url: self.r#type.clone() };
        let known = REMEMBERED.iter().find(|one| one.type_url == self.r#type).ok_or_else(unknown)?;
        let bytes = BASE64_STANDARD.decode(&self.body).map_err(|error| PageError::Body { name: name(), error })?;
        Ok(Resource { type_url: known.type_url, name: name(), bytes })
    }
}

/// What is kept of this history.
pub fn summary(history: &History, now: Moment) -> Summary {
    Summary {
        now,
        oldest: history.oldest(now),
        newest: history.since(),
        versions: history.versions(),
        bytes: history.bytes(),
        max_bytes: history.most_bytes(),
    }
}

/// The time that a query asks for; None: what is kept is asked for. It is taken as it is written: a `+` needs no escape.
pub fn asked(query: &str) -> Option<&str> {
    query.split('&').find_map(|part| part.strip_prefix("at="))
}

/// The answer to who asks for a time. It may take seconds: a day of versions is unpacked.
pub fn answer(history: &History, time: &str, now: Moment, pod: &str) -> Answer {
    let at = time.parse::<When>().and_then(|when| summary(history, now).find(when)).map_err(PastError::from);
    match at.and_then(|at| Ok(Page::of(history.at(at)?, at, pod))) {
        Ok(page) => admin::typed(200, "application/json", serde_json::to_vec(&page).unwrap_or_default()),
        Err(error) => admin::text(status(&error), format!("{error}\n")),
    }
}

fn status(error: &PastError) -> u16 {
    match error {
        PastError::At(AtError::Unreadable(_) | AtError::Future { .. }) => 400,
        PastError::At(AtError::NotKept { .. }) => 410,
        PastError::Unpack(_) | PastError::Decode(_) => 500,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use http_body_util::BodyExt;
    use karst_api::ROUTES_TYPE;
    use karst_xds::{Entry, Resources};
    use std::time::Duration;

    fn moment(text: &str) -> Moment {
        text.parse().unwrap()
    }

    /// Routes `one` from 10:00 on, and `two` from 11:00 on.
    fn history() -> History {
        let version = |number: u8| {
            let set = [("shop/web".to_string(), Entry::new(vec![number], vec![]))].into_iter().collect();
            Arc::new(Resources::new([(ROUTES_TYPE, set)].into(), number.into()))
        };
        let history = History::default().record(version(1), moment("2026-10-02T10:00:00Z"));
        history.record(version(2), moment("2026-10-02T11:00:00Z"))
    }

    async fn ask(time: &str) -> (u16, String) {
        let answer = answer(&history(), time, moment("2026-10-02T12:00:00Z"), "istiod-1");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_page_of_a_time_is_read_back_as_it_was() {
        for (time, version, since, byte) in [
            ("2026-10-02T10:59:59Z", 1, "2026-10-02T10:00:00Z", 1),
            ("90m", 1, "2026-10-02T10:00:00Z", 1),
            ("2026-10-02T13:00:00+02:00", 2, "2026-10-02T11:00:00Z", 2),
            ("0s", 2, "2026-10-02T11:00:00Z", 2),
        ] {
            let (status, body) = ask(time).await;
            assert_eq!(status, 200, "{time}: {body}");
            let page: Page = serde_json::from_str(&body).unwrap();
            assert_eq!((page.version, page.since, &*page.pod), (version, moment(since), "istiod-1"), "{time}");
            let routes = Resource { type_url: ROUTES_TYPE, name: "shop/web".into(), bytes: vec![byte] };
            assert_eq!(page.resources().unwrap(), [routes], "{time}");
        }
    }

    #[tokio::test]
    async fn a_time_that_cannot_be_told_is_refused_with_its_code() {
        for (time, status, code) in [
            ("yesterday", 400, "[KARST-0801]\n"),
            ("", 400, "[KARST-0801]\n"),
            ("2026-10-02T12:00:01Z", 400, "[KARST-0802]\n"),
            ("3h", 410, "[KARST-0803]\n"),
        ] {
            let (told, body) = ask(time).await;
            assert!(told == status && body.ends_with(code), "{time}: {told} {body}");
        }
        let (_, body) = ask("2026-10-02T09:00:00Z").await;
        assert!(body.contains("the oldest that is kept is of 2026-10-02T10:00:00.000000Z"), "{body}");
    }

    #[test]
    fn what_is_kept_says_what_can_be_asked_for() {
        let now = moment("2026-10-02T12:00:00Z");
        let told = summary(&history(), now);
        assert_eq!((told.oldest, told.newest), (moment("2026-10-02T10:00:00Z"), Some(moment("2026-10-02T11:00:00Z"))));
        assert!(told.versions == 2 && told.bytes > 0 && told.bytes < told.max_bytes, "{told:?}");
        assert_eq!(told.find(When::Ago(Duration::from_secs(7200))), Ok(told.oldest));
        assert!(told.find(When::Ago(Duration::from_secs(7201))).is_err());
        let json = serde_json::to_string(&told).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), told, "{json}");
        let none = summary(&History::default(), now);
        assert_eq!((none.oldest, none.newest, none.versions), (now, None, 0));
    }

    #[test]
    fn a_page_of_another_version_is_refused() {
        let page = |type_url: &str, body: &str| Page {
            pod: String::new(),
            at: Moment::default(),
            since: Moment::default(),
            version: 1,
            resources: vec![Encoded { r#type: type_url.into(), name: "shop/web".into(), body: body.into() }],
        };
        assert!(matches!(page("type.googleapis.com/new", "").resources(), Err(PageError::Type { .. })));
        assert!(matches!(page(ROUTES_TYPE, "?").resources(), Err(PageError::Body { .. })));
        assert_eq!(asked("at=15m"), Some("15m"));
        assert_eq!((asked("proxyID=a&at=1h"), asked(""), asked("that=1h")), (Some("1h"), None, None));
    }
}
