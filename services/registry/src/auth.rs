//! How we answer a registry that asks who we are: Basic, or a token from the server that it names.
//!
//! Invariants: a password goes to the registry and to the token server that it names, and to one without TLS only when the registry
//! itself is spoken to without; answers are bounded; no secret is in a message. Sources: distribution's "Token Authentication
//! Specification" and "OAuth2 Token Authentication"; RFC 7235.

use std::time::Duration;

use base64::Engine as _;
use http_auth::ChallengeRef;
use reqwest::header::{AUTHORIZATION, HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

use crate::credentials::Credentials;

/// Largest answer of a token server, bytes.
const MOST_ANSWER: usize = 1 << 20;
const CLIENT_ID: &str = "gantry";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// We have nothing to show, or it is not accepted.
    Denied,
    /// The token server cannot be asked, or answers nonsense.
    Server(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// What a Bearer challenge says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Bearer {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer(Bearer),
}

fn basic(user: &str, password: &str) -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {pair}")
}

fn bearer(challenge: &ChallengeRef<'_>) -> Bearer {
    let value = |name: &str| {
        challenge
            .params
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_unescaped())
    };
    Bearer {
        realm: value("realm").unwrap_or_default(),
        service: value("service"),
        scope: value("scope"),
    }
}

/// The challenge that we can answer; Bearer before Basic, whatever their order.
fn choose(values: &[&str]) -> Option<Challenge> {
    let mut chosen = None;
    for value in values {
        let Ok(challenges) = http_auth::parse_challenges(value) else {
            continue;
        };
        for challenge in challenges {
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                return Some(Challenge::Bearer(bearer(&challenge)));
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                chosen = Some(Challenge::Basic);
            }
        }
    }
    chosen
}

/// Who asks, and how patiently.
#[derive(Debug)]
pub struct Asker<'a> {
    /// Set up for the registry's TLS.
    pub http: &'a reqwest::Client,
    /// The registry is spoken to without TLS.
    pub plain: bool,
    /// What we may show.
    pub credentials: &'a Credentials,
    /// What we want to do: `repository:NAME:pull,push`.
    pub scopes: &'a [String],
    /// Longest wait for an answer.
    pub stall: Duration,
}

impl Asker<'_> {
    /// The Authorization header that answers a 401.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn answer(&self, headers: &HeaderMap) -> Result<String, Refusal> {
        let values: Vec<&str> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        match (choose(&values), self.credentials) {
            (Some(Challenge::Basic), Credentials::Basic(user, password)) => {
                Ok(basic(user, password))
            }
            (Some(Challenge::Bearer(bearer)), _) => self.token(&bearer).await,
            _ => Err(Refusal::Denied),
        }
    }

    async fn token(&self, bearer: &Bearer) -> Result<String, Refusal> {
        let server = |reason: String| Refusal::Server(format!("token server: {reason}"));
        let url = reqwest::Url::parse(&bearer.realm)
            .map_err(|_| server(format!("{:?} is no address", bearer.realm)))?;
        let secret = !matches!(self.credentials, Credentials::Anonymous);
        match url.scheme() {
            "https" => {}
            "http" if self.plain || !secret => {}
            "http" => {
                return Err(server(format!(
                    "{url} is without TLS; credentials are not sent there"
                )));
            }
            _ => return Err(server(format!("{url} is no http address"))),
        }
        let mut scopes = self.scopes.to_vec();
        if scopes.is_empty() {
            scopes.extend(bearer.scope.clone());
        }
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        if let Some(service) = &bearer.service {
            pairs.push(("service", service));
        }
        let joined = scopes.join(" ");
        let request = if let Credentials::Identity(token) = self.credentials {
            pairs.extend([
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", token),
                ("scope", &joined),
            ]);
            let body = form(&pairs);
            self.http
                .post(url)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body)
        } else {
            pairs.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
            let mut url = url;
            url.query_pairs_mut().extend_pairs(pairs);
            let request = self.http.get(url);
            match self.credentials {
                Credentials::Basic(user, password) => {
                    request.header(AUTHORIZATION, basic(user, password))
                }
                _ => request,
            }
        };
        let work = async {
            let mut response = request
                .send()
                .await
                .map_err(|error| server(super::remote::chain(&error.without_url())))?;
            match response.status().as_u16() {
                200..=299 => {}
                400 | 401 | 403 => return Err(Refusal::Denied),
                status => return Err(server(format!("HTTP status {status}"))),
            }
            let mut bytes = Vec::new();
            while let Some(piece) = response
                .chunk()
                .await
                .map_err(|error| server(error.without_url().to_string()))?
            {
                bytes.extend_from_slice(&piece);
                if bytes.len() > MOST_ANSWER {
                    return Err(server("the answer is too long".into()));
                }
            }
            Ok(bytes)
        };
        let bytes = tokio::time::timeout(self.stall, work)
            .await
            .map_err(|_| server(format!("no answer within {} s", self.stall.as_secs())))??;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|_| server("the answer is not what a token server says".into()))?;
        let token = if answer.token.is_empty() {
            answer.access_token
        } else {
            answer.token
        };
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(server("the answer has no token".into()));
        }
        Ok(format!("Bearer {token}"))
    }
}

/// `application/x-www-form-urlencoded`.
fn form(pairs: &[(&str, &str)]) -> String {
    // The one encoder that the HTTP client brings is that of its addresses.
    let Ok(mut url) = reqwest::Url::parse("http://form.invalid/") else {
        return String::new();
    };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#;
        let Some(Challenge::Bearer(found)) = choose(&[hub]) else {
            panic!("no bearer");
        };
        assert_eq!(found.realm, "https://auth.docker.io/token");
        assert_eq!(found.service.as_deref(), Some("registry.docker.io"));
        assert_eq!(found.scope.as_deref(), Some("repository:a/b:pull"));
        assert_eq!(choose(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert!(matches!(
            choose(&["Basic realm=\"x\"", "bearer realm=\"y\""]),
            Some(Challenge::Bearer(_))
        ));
        for nonsense in [
            "",
            "Negotiate",
            "Bearer realm=",
            "\u{1}",
            "Digest realm=\"x\"",
        ] {
            assert_eq!(choose(&[nonsense]), None, "{nonsense:?}");
        }
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(form(&[("a", "b c&d"), ("e", "f")]), "a=b+c%26d&e=f");
    }
}
