//! Names that are safe in paths, URLs, certificates and MQTT topics.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {what}: {rule}")]
pub struct NameError {
    what: &'static str,
    rule: &'static str,
    text: String,
}

fn is_label(text: &str, max: usize) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= max
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        ///
        /// Shared by its clones: names are keys everywhere.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(&text) {
                    Ok($name(text.into()))
                } else {
                    let text = text.chars().take(80).collect();
                    Err(NameError { what: $what, rule: $rule, text })
                }
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                text.to_owned().try_into()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

text_newtype!(
    /// Name of a node, site, app, token or rollout: a DNS label (RFC 1123) of at most 63 characters.
    Name,
    "name",
    "use 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends",
    |text| is_label(text, 63)
);

text_newtype!(
    /// Version of a release: DNS labels joined by dots, so semantic versions fit, at most 63 characters.
    Version,
    "version",
    "use 1 to 63 lower-case letters, digits, '-' and '.', with a letter or digit around every '.'",
    |text| text.len() <= 63 && text.split('.').all(|part| is_label(part, 63))
);

text_newtype!(
    /// Name of any object: DNS labels joined by dots (RFC 1123 subdomain), at most 127 characters.
    ObjectName,
    "object name",
    "use 1 to 127 lower-case letters, digits, '-' and '.', with a letter or digit around every '.'",
    |text| text.len() <= 127 && text.split('.').all(|part| is_label(part, 127))
);

text_newtype!(
    /// Name of a metric, as Prometheus has them, at most 64 characters.
    MetricName,
    "metric name",
    "use 1 to 64 letters, digits and '_', the first one no digit, such as frames_per_second",
    |text| {
        text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
    }
);

impl Name {
    /// `node`: what stands for the node itself where otherwise an app is named.
    #[must_use]
    pub fn node() -> Name {
        Name("node".into())
    }
}

impl From<Name> for ObjectName {
    fn from(name: Name) -> ObjectName {
        ObjectName(name.0)
    }
}

/// `app@version`, as people write it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseName {
    /// The app.
    pub app: Name,
    /// Its version.
    pub version: Version,
}

impl ReleaseName {
    /// Name of the `Release` object: `app.version` (an app has no dot, so it splits one way only).
    #[must_use]
    pub fn object_name(&self) -> ObjectName {
        ObjectName(format!("{}.{}", self.app, self.version).into())
    }

    /// Path of the TUF target that is this release's manifest.
    #[must_use]
    pub fn target_path(&self) -> String {
        format!("{}/{}.json", self.app, self.version)
    }
}

impl FromStr for ReleaseName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (app, version) = text.split_once('@').ok_or_else(|| NameError {
            what: "release",
            rule: "write it as APP@VERSION, such as scan-uploader@1.4.0",
            text: text.chars().take(80).collect(),
        })?;
        Ok(ReleaseName { app: app.parse()?, version: version.parse()? })
    }
}

impl fmt::Display for ReleaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.app, self.version))
    }
}

impl fmt::Debug for ReleaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_do_not_exist() {
        for bad in ["", ".", "..", "a/b", "A", "-a", "a-", "a.b", "a b", "ä", "a\0", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", "1..2", ".1", "1.", "1/2", "1.0+build"] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
        assert!("hz-01".parse::<Name>().is_ok());
        assert!("1.4.0-rc.1".parse::<Version>().is_ok());
    }

    #[test]
    fn a_release_is_app_at_version() {
        let release: ReleaseName = "scan-uploader@1.4.0".parse().unwrap();
        assert_eq!(release.object_name().as_str(), "scan-uploader.1.4.0");
        assert_eq!(release.target_path(), "scan-uploader/1.4.0.json");
        let error = "scan-uploader".parse::<ReleaseName>().unwrap_err().to_string();
        assert!(error.contains("APP@VERSION"), "{error}");
    }
}
