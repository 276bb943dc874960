//! Parses URLs: determines their origin and resolves redirects.

use ureq::http::Uri;

/// Scheme, host and port of a server. The access token belongs to one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// Parses the origin of a URL.
    ///
    /// # Errors
    /// The URL is malformed, or its scheme is neither http nor https; the text says which.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e| format!("is not an address: {e}"))?;
        let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            "" => {
                return Err("is not an address: it begins with neither http:// nor https://".into());
            }
            _ => return Err(format!("has the scheme {scheme:?}, not http or https")),
        };
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        if host.is_empty() {
            return Err("is not an address: it names no host".into());
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let after_host = authority.rsplit(['@', ']']).next().unwrap_or_default();
        let port = match after_host.rsplit_once(':') {
            Some((_, port)) => {
                port.parse().map_err(|_| format!("is not an address: {port:?} is not a port"))?
            }
            None => default_port,
        };
        Ok(Self { scheme, host, port })
    }
}

/// Returns the absolute URL to which a response from `url` redirects.
///
/// # Errors
/// `location` is malformed, of an unknown scheme, or leads from https to http; the text says which.
pub(super) fn resolve_redirect(url: &str, location: &str) -> Result<String, String> {
    let from = Origin::parse(url)?;
    let place = location.split('#').next().unwrap_or_default();
    let path_at = url.find("://").map_or(0, |at| at + 3).min(url.len());
    let path_at = url[path_at..].find(['/', '?']).map_or(url.len(), |at| path_at + at);
    let (server, path) = url.split_at(path_at);
    let path = path.split('?').next().unwrap_or_default();
    let target = if has_scheme(place) {
        place.to_string()
    } else if place.starts_with("//") {
        format!("{}:{place}", from.scheme)
    } else if place.starts_with('/') {
        format!("{server}{place}")
    } else if place.is_empty() || place.starts_with('?') {
        format!("{server}{path}{place}")
    } else {
        let folder = path.rfind('/').map_or("", |end| &path[..end]);
        format!("{server}{folder}/{place}")
    };
    let to = Origin::parse(&target)?;
    if from.scheme == "https" && to.scheme == "http" {
        return Err("leads from https to http, where anyone on the way can change the file".into());
    }
    Ok(target)
}

/// Returns whether a location begins with a scheme, as `mailto:` does.
fn has_scheme(location: &str) -> bool {
    let end = location
        .find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c))
        .unwrap_or(location.len());
    end > 0
        && location[end..].starts_with(':')
        && location.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Returns `url` in a form fit for messages: without user name, password and query, which may hold a signature.
pub(super) fn redacted(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    let server = url[start..end].rsplit('@').next().unwrap_or_default();
    let redacted: String = format!("{}{server}{}", &url[..start], &url[end..])
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(300)
        .collect();
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |url| Origin::parse(url).unwrap();
        assert_eq!(origin("http://a"), origin("HTTP://A:80/x?y"));
        assert_eq!(origin("https://a/"), origin("https://me:secret@a:443"));
        assert_eq!(origin("http://[::1]:80/"), origin("http://[::1]"));
        for other in ["https://a", "http://a:81", "http://b", "http://a.b"] {
            assert_ne!(origin("http://a"), origin(other), "{other}");
        }
        let long = format!("http://a/{}", "b".repeat(100_000));
        for bad in [
            "",
            "x",
            "/x",
            "a:80",
            "http://",
            "http:///x",
            "http://[::1",
            "ftp://a",
            "file:///etc",
            "http://a:99999",
            "http://a:b",
            "http://a b",
            "\u{1}",
            &long,
        ] {
            assert!(Origin::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn redirects_are_resolved_or_refused() {
        let url = "https://me@a:8/own/name/file?x=1";
        for (location, target) in [
            ("/b/c?d#e", "https://me@a:8/b/c?d"),
            ("b", "https://me@a:8/own/name/b"),
            ("?d", "https://me@a:8/own/name/file?d"),
            ("//b/c", "https://b/c"),
            ("https://b/c:d", "https://b/c:d"),
        ] {
            assert_eq!(resolve_redirect(url, location).as_deref(), Ok(target));
        }
        assert_eq!(resolve_redirect("http://a", "b").as_deref(), Ok("http://a/b"));
        assert_eq!(resolve_redirect("http://a", "https://b/").as_deref(), Ok("https://b/"));
        for bad in [
            "http://b/c",
            "http://a:8/own",
            "file:///etc/passwd",
            "gopher://a/",
            "javascript:alert(1)",
            "https://",
            "///",
            "https://[::1",
            "\u{1}",
            "/a b",
            "data:,x",
        ] {
            assert!(resolve_redirect(url, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn messages_show_neither_passwords_nor_signatures() {
        assert_eq!(redacted("http://me:secret@a:8/b?token=x#y"), "http://a:8/b");
        assert_eq!(redacted("x\n"), "x?");
    }
}
