//! `--filter` of images: what a filter means and whether an image passes it. Pure.
//!
//! Invariant: a filter that means nothing is an error, not a filter that lets everything through.

use gantry_proto::store::ImageSummary;
use gantry_types::Reference;

use crate::error::{Error, Result};
use crate::image::{familiar, is_dangling};

/// One filter.
#[derive(Debug)]
pub enum Filter {
    /// Name or repository fits a pattern.
    Reference(String),
    /// It has no name, or has one.
    Dangling(bool),
    /// It has a label (with a value), or has it not.
    Label(bool, String, Option<String>),
    /// Built before, or after, this second of Unix time.
    Built(bool, i64),
    /// The target's digest, or the image's.
    Digest(String),
}

/// Whether a name fits a pattern with `*` (which stops at a slash).
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .take_while(|at| !rest[..*at].contains('/'))
                .any(|at| fits(after, &rest[at..]))
        }),
    }
}

fn built(summaries: &[ImageSummary], flag: &str, name: &str) -> Result<i64> {
    let normal = name
        .parse::<Reference>()
        .map(|reference| reference.to_string());
    let found = summaries.iter().find(|summary| {
        let image = summary.image.as_ref().map(|image| image.name.as_str());
        let hex = summary.id.strip_prefix("sha256:").unwrap_or(&summary.id);
        normal.as_deref().is_ok_and(|normal| image == Some(normal))
            || (name.len() >= 4 && hex.starts_with(name))
    });
    let found = found.ok_or_else(|| Error::Usage(format!("{flag}: no such image: {name}")))?;
    Ok(found.built_at.as_ref().map_or(0, |moment| moment.seconds))
}

/// A moment: RFC 3339, Unix seconds, or an age such as 24h.
fn moment(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(seconds);
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(time.as_second());
    }
    let span: jiff::SignedDuration = text.parse().ok()?;
    Some(jiff::Timestamp::now().as_second() - span.as_secs())
}

/// Reads filters; `before` and `since` look images up in `summaries`.
///
/// # Errors
/// Names the filter and what would be right.
pub fn parse(texts: &[String], summaries: &[ImageSummary]) -> Result<Vec<Filter>> {
    let one = |text: &String| {
        let wrong = || {
            Error::Usage(crate::flags::bad(
                "--filter",
                text,
                "write reference=PATTERN, dangling=true, label=KEY[=VALUE], before=IMAGE, since=IMAGE, until=24h or digest=DIGEST",
            ))
        };
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let label = |wanted| {
            let (key, value) = match value.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (value, None),
            };
            Filter::Label(wanted, key.to_owned(), value)
        };
        Ok(match key {
            "reference" => Filter::Reference(value.to_owned()),
            "dangling" => Filter::Dangling(match value {
                "true" | "1" => true,
                "false" | "0" => false,
                _ => return Err(wrong()),
            }),
            "label" => label(true),
            "label!" => label(false),
            "before" => Filter::Built(true, built(summaries, "before", value)?),
            "since" => Filter::Built(false, built(summaries, "since", value)?),
            "until" => Filter::Built(true, moment(value).ok_or_else(wrong)?),
            "digest" => Filter::Digest(value.to_owned()),
            _ => return Err(wrong()),
        })
    };
    texts.iter().map(one).collect()
}

impl Filter {
    /// Whether an image passes.
    pub fn keeps(&self, summary: &ImageSummary) -> bool {
        let image = summary.image.clone().unwrap_or_default();
        match self {
            Filter::Reference(pattern) => {
                let familiar = familiar(&image.name);
                let bare = familiar.split('@').next().unwrap_or_default();
                let repository = match bare.rsplit_once(':') {
                    Some((repository, tag)) if !tag.contains('/') => repository,
                    _ => bare,
                };
                fits(pattern, bare) || fits(pattern, repository)
            }
            Filter::Dangling(wanted) => is_dangling(&image.name) == *wanted,
            Filter::Label(wanted, key, value) => {
                let has = summary
                    .config_labels
                    .get(key)
                    .is_some_and(|own| value.as_ref().is_none_or(|value| value == own));
                has == *wanted
            }
            Filter::Built(before, than) => {
                let own = summary.built_at.as_ref().map_or(0, |moment| moment.seconds);
                if *before { own < *than } else { own > *than }
            }
            Filter::Digest(wanted) => {
                let target = image.target.unwrap_or_default().digest;
                let digests = [&target, &summary.id, &summary.manifest_digest];
                digests.iter().any(|digest| {
                    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
                    *digest == wanted || (wanted.len() >= 4 && hex.starts_with(wanted.as_str()))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stop_at_slashes() {
        for (pattern, name, yes) in [
            ("deb*", "debian", true),
            ("deb*", "debian/x", false),
            ("*/app", "team/app", true),
            ("a*c*", "abcd", true),
            ("x", "y", false),
        ] {
            assert_eq!(fits(pattern, name), yes, "{pattern} {name}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in [
            "colour=red",
            "dangling=perhaps",
            "until=soon",
            "label",
            "before=none",
        ] {
            assert!(parse(&[text.to_owned()], &[]).is_err(), "{text}");
        }
        assert!(moment("24h").is_some_and(|at| at < jiff::Timestamp::now().as_second()));
        assert_eq!(moment("1700000000"), Some(1_700_000_000));
    }
}
