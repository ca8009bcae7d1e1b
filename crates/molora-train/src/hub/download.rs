//! Downloads of single files: resumed, checked for size and content, with their progress shown.

use std::cell::RefCell;
use std::io::Read;
use std::path::{Path, PathBuf};

use ureq::Body;
use ureq::http::{HeaderMap, Response, header};

use super::cache::ModelCache;
use super::content::{Digest, Known, Mismatch};
use super::http::{Client, answer, connection};
use super::interruptible::{pieces, sleep};
use super::listing::Listing;
use super::part::PartialFile;
use super::{HubError, ModelId, OnProgress, Progress};

/// Downloads files of one commit into the cache.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) cache: &'a ModelCache,
    pub(super) listing: &'a Listing,
    /// Files whose content was checked before.
    pub(super) known: &'a RefCell<Known>,
}

impl Download<'_> {
    /// Downloads a file unless the cache holds it.
    pub(super) fn file(
        &self,
        name: &str,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<(), HubError> {
        let Some(&size) = self.listing.sizes.get(name) else {
            return Err(self.missing(name));
        };
        if self.is_here(name, size, on_progress)? {
            return Ok(());
        }
        // The commit names the bytes, so that what is there can be continued without asking.
        let name_of_part = format!("{}-{name}", self.listing.commit);
        let part = self.cache.blob(&format!("{name_of_part}.part"));
        let lock = self.cache.lock(&format!("{name_of_part}.lock"));
        let mut part = PartialFile::open(part, &lock, &mut || {
            self.tell(Progress::Waiting { file: name }, name, on_progress)
        })?;
        if self.is_here(name, size, on_progress)? {
            return Ok(()); // by the process that we waited for
        }
        let blob = with_retries(self.client, name, on_progress, |on_progress| {
            let before = part.len;
            let result = self.attempt(name, size, &mut part, on_progress);
            (part.len.saturating_sub(before) >= least(size), result)
        })?;
        self.cache.link(&self.listing.commit, name, &blob)
    }

    /// Whether the cache holds a file, with the content that the hub reports.
    fn is_here(
        &self,
        name: &str,
        size: Option<u64>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<bool, HubError> {
        let path = self.cache.path(&self.listing.commit, name);
        let found = std::fs::metadata(&path).map(|found| found.len());
        if !found.is_ok_and(|found| size.is_none_or(|size| size == found)) {
            return Ok(false);
        }
        let listed = self.listing.digests.get(name).cloned();
        let digests: Vec<Digest> = listed.into_iter().chain(Digest::of_cached(&path)).collect();
        Ok(self.differs(name, &path, &digests, on_progress)?.is_none())
    }

    /// The first hash that a file does not have, and the one that it has.
    fn differs(
        &self,
        name: &str,
        path: &Path,
        digests: &[Digest],
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Option<Mismatch>, HubError> {
        let mut go_on = || self.tell(Progress::Asking { file: name }, name, on_progress);
        self.known.borrow_mut().differs(path, digests, &mut go_on)
    }

    /// One request; returns the finished blob.
    fn attempt(
        &self,
        name: &str,
        listed: Option<u64>,
        part: &mut PartialFile,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<PathBuf, HubError> {
        if listed.is_some_and(|size| part.len >= size) {
            part.cut()?;
        }
        let url = self.client.url(&self.listing.commit, name);
        let mut go_on = || self.tell(Progress::Asking { file: name }, name, on_progress);
        let answer = self.client.get(&url, part.len, &mut go_on)?;
        let status = answer.response.status().as_u16();
        match status {
            404 => return Err(self.missing(name)),
            // The part is no beginning of this file, or the server sends all of it.
            416 | 200 => part.cut()?,
            _ => {}
        }
        self.client
            .check_access(status, answer.response.headers(), &url)?;
        let served = served(&answer.response, part.len, &url)?;
        let size = agreed_size(&url, [listed, answer.linked_size, served])?;
        let etag = answer.etag.as_deref().and_then(blob_name);
        let listed = self.listing.digests.get(name).cloned();
        let named = etag.as_deref().and_then(Digest::new);
        let digests: Vec<Digest> = listed.into_iter().chain(named).collect();
        let fallback = || format!("{}-{name}", self.listing.commit);
        let blob = self.cache.blob(&etag.unwrap_or_else(fallback));
        if std::fs::metadata(&blob).is_ok_and(|found| found.len() == size)
            && self.differs(name, &blob, &digests, on_progress)?.is_none()
        {
            part.remove()?;
            return Ok(blob);
        }
        let was_resumed = part.len > 0;
        self.copy(name, size, answer.response.into_body(), part, on_progress)?;
        if let Some(Mismatch { found, expected }) =
            self.differs(name, part.path(), &digests, on_progress)?
        {
            part.cut()?;
            return Err(HubError::Hash {
                url,
                found,
                expected,
                was_resumed,
            });
        }
        part.finish(&blob)?;
        self.known.borrow_mut().remember(&blob, &digests);
        Ok(blob)
    }

    /// Appends a body to the part until it has the whole size.
    fn copy(
        &self,
        name: &str,
        total: u64,
        body: Body,
        part: &mut PartialFile,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<(), HubError> {
        let url = self.client.url(&self.listing.commit, name);
        // One byte more than there should be tells that there are too many.
        let reader = body.into_reader().take(total.saturating_sub(part.len) + 1);
        pieces(&url, reader, self.client.config.timeout, &mut |piece| {
            if let Some(bytes) = piece {
                part.append(bytes)?;
            }
            let progress = Progress::Bytes {
                file: name,
                done: part.len.min(total),
                total,
            };
            self.tell(progress, name, on_progress)
        })?;
        let found = part.len;
        if found > total {
            part.cut()?;
            return Err(HubError::Size {
                url,
                found,
                expected: total,
            });
        }
        if found < total {
            return Err(connection(
                &url,
                format!("ended after {found} of {total} bytes"),
            ));
        }
        Ok(())
    }

    fn tell(
        &self,
        progress: Progress<'_>,
        name: &str,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<(), HubError> {
        tell(self.client.model, progress, name, on_progress)
    }

    fn missing(&self, name: &str) -> HubError {
        HubError::NoSuchFile {
            model: self.client.model.at(&self.listing.commit),
            file: name.into(),
            hint: String::new(),
        }
    }
}

/// How many bytes of a file an attempt brings at least to count as one that got on: a thousandth, but
/// no less than 512 (of small files a tenth). Otherwise a server that sends a byte each time would be
/// retried forever.
fn least(size: Option<u64>) -> u64 {
    const MOST: u64 = 1024 * 1024;
    size.map_or(MOST, |size| {
        (size / 1024).max(512).min(size / 10).clamp(1, MOST)
    })
}

/// Tries again after failures that may pass; `attempt` also says whether it got on.
pub(super) fn with_retries<T>(
    client: &Client<'_>,
    name: &str,
    on_progress: &mut OnProgress<'_>,
    mut attempt: impl FnMut(&mut OnProgress<'_>) -> (bool, Result<T, HubError>),
) -> Result<T, HubError> {
    let mut failures = 0;
    loop {
        let (got_on, result) = attempt(on_progress);
        failures = if got_on { 1 } else { failures + 1 };
        match result {
            Err(error) if error.is_temporary() && failures < client.config.attempts => {
                let progress = Progress::Retry {
                    file: name,
                    problem: &error,
                };
                tell(client.model, progress, name, on_progress)?;
                let pause = client.config.pause * 2_u32.pow(failures.min(6) - 1);
                let asking = Progress::Asking { file: name };
                sleep(pause, &mut || tell(client.model, asking, name, on_progress))?;
            }
            result => return result,
        }
    }
}

pub(super) fn tell(
    model: &ModelId,
    progress: Progress<'_>,
    name: &str,
    on_progress: &mut OnProgress<'_>,
) -> Result<(), HubError> {
    match on_progress(progress).is_break() {
        false => Ok(()),
        true => Err(HubError::Stopped {
            model: model.clone(),
            file: name.into(),
        }),
    }
}

/// Size of the whole file in bytes by the answer's own headers; it has to begin at `start`.
fn served(response: &Response<Body>, start: u64, url: &str) -> Result<Option<u64>, HubError> {
    let read = |name: header::HeaderName| read_text(response.headers(), &name);
    if response.status().as_u16() != 206 {
        return Ok(read(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()));
    }
    let range = read(header::CONTENT_RANGE).unwrap_or_default();
    let parsed = range.strip_prefix("bytes ").and_then(|range| {
        let (span, total) = range.split_once('/')?;
        let (first, _) = span.split_once('-')?;
        Some((first.parse::<u64>().ok()?, total.parse().ok()?))
    });
    match parsed {
        Some((first, total)) if first == start => Ok(Some(total)),
        _ => {
            let text = format!("asked for bytes from {start} on, got Content-Range `{range}`");
            Err(answer(url, text))
        }
    }
}

fn read_text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The one size that all sources name: the description, the hub's answer, the server's.
fn agreed_size(url: &str, sizes: [Option<u64>; 3]) -> Result<u64, HubError> {
    let mut sizes = sizes.into_iter().flatten();
    let Some(expected) = sizes.next() else {
        return Err(answer(url, "nothing tells the size of the file"));
    };
    match sizes.find(|&size| size != expected) {
        None => Ok(expected),
        Some(found) => Err(HubError::Size {
            url: url.into(),
            found,
            expected,
        }),
    }
}

/// The name of a file's blob: its ETag without quotes, if that can be the name of a file.
fn blob_name(etag: &str) -> Option<String> {
    let name = etag.trim_start_matches("W/").trim_matches('"');
    let is_name = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    is_name.then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_to_agree() {
        let size = |sizes| agreed_size("u", sizes).map_err(|error| error.to_string());
        assert_eq!(size([None, Some(3), Some(3)]), Ok(3));
        let text = "u: 4 bytes, but 3 were announced";
        assert_eq!(size([Some(3), None, Some(4)]), Err(text.into()));
        assert_eq!(
            size([None; 3]),
            Err("u: nothing tells the size of the file".into())
        );
    }

    #[test]
    fn blobs_are_named_by_the_etag() {
        assert_eq!(blob_name("\"abc-1\"").as_deref(), Some("abc-1"));
        assert_eq!(blob_name("W/\"abc\"").as_deref(), Some("abc"));
        for bad in ["", "\"\"", "\"../x\"", "a/b", ".hidden"] {
            assert_eq!(blob_name(bad), None, "{bad}");
        }
    }
}
