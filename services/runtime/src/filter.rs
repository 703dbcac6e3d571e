//! Filters of lists and events: "key=value", docker's way.
//!
//! Invariant: values of one key are alternatives, different keys must all fit; an unknown key is an error.

use std::collections::BTreeMap;

use crate::container::View;
use crate::error::Error;
use crate::events::Event;
use crate::hub::image_of;
use crate::state::State;

/// Values by key.
#[derive(Debug, Default)]
pub struct Filter(BTreeMap<String, Vec<String>>);

const CONTAINER_KEYS: [&str; 8] = [
    "status", "name", "id", "label", "ancestor", "exited", "network", "volume",
];
const EVENT_KEYS: [&str; 6] = ["container", "event", "type", "label", "image", "id"];

impl Filter {
    fn parse(texts: &[String], known: &[&str]) -> Result<Self, Error> {
        let mut filter = Self::default();
        for text in texts {
            let (key, value) = text.split_once('=').ok_or_else(|| {
                Error::field("filter", text, "write key=value, such as status=exited")
            })?;
            if !known.contains(&key) {
                let reason = format!("unknown key; write one of {}", known.join(", "));
                return Err(Error::field("filter", text, reason));
            }
            filter
                .0
                .entry(key.to_owned())
                .or_default()
                .push(value.to_owned());
        }
        Ok(filter)
    }

    /// For lists of containers.
    ///
    /// # Errors
    /// For a key that does not exist.
    pub fn for_containers(texts: &[String]) -> Result<Self, Error> {
        Self::parse(texts, &CONTAINER_KEYS)
    }

    /// For events.
    ///
    /// # Errors
    /// For a key that does not exist.
    pub fn for_events(texts: &[String]) -> Result<Self, Error> {
        Self::parse(texts, &EVENT_KEYS)
    }

    /// A state is asked for, so containers that do not run are wanted too.
    pub fn names_a_state(&self) -> bool {
        self.0.contains_key("status") || self.0.contains_key("exited")
    }

    fn all(&self, fits: impl Fn(&str, &str) -> bool) -> bool {
        self.0
            .iter()
            .all(|(key, values)| values.iter().any(|value| fits(key, value)))
    }

    /// Whether a container fits.
    pub fn fits(&self, view: &View) -> bool {
        let record = &view.record;
        self.all(|key, value| match key {
            "status" => view.state.name() == value,
            "name" => record.name.contains(value.trim_start_matches('/')),
            "id" => view.id.starts_with(value),
            "label" => has_label(value, |key| record.labels.get(key).map(String::as_str)),
            "ancestor" => {
                image_of(record) == value
                    || record.image_name == value
                    || record.image_id == value
                    || record
                        .image_id
                        .strip_prefix("sha256:")
                        .is_some_and(|hex| value.len() >= 4 && hex.starts_with(value))
                    || record.image_name.ends_with(&format!("/{value}"))
                    || record.image_name.ends_with(&format!("/{value}:latest"))
            }
            "exited" => {
                matches!(&view.state, State::Exited(exit) if exit.code.to_string() == value)
            }
            "network" => view
                .endpoints
                .iter()
                .any(|endpoint| endpoint.network == value || endpoint.network_id == value),
            "volume" => record
                .volumes
                .iter()
                .any(|(target, name)| target == value || name == value),
            _ => false,
        })
    }

    /// Whether an event fits.
    pub fn fits_event(&self, event: &Event) -> bool {
        let attribute = |key: &str| event.attributes.get(key).map(String::as_str);
        self.all(|key, value| match key {
            "container" | "id" => event.id.starts_with(value) || attribute("name") == Some(value),
            "event" => event.action == value,
            "type" => value == "container",
            "label" => has_label(value, attribute),
            "image" => attribute("image") == Some(value),
            _ => false,
        })
    }
}

fn has_label<'a>(wanted: &str, get: impl Fn(&str) -> Option<&'a str>) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => get(key) == Some(value),
        None => get(wanted).is_some(),
    }
}
