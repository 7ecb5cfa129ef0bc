//! How kinds, their data and their words are declared, in one way for all of them.

/// Makes a `spec` type a kind: the alias of its objects, their plural and status.
macro_rules! kind {
    ($alias:ident, $spec:ident, $status:ident, $plural:literal) => {
        #[doc = concat!("Object of kind `", stringify!($alias), "`.")]
        pub type $alias = $crate::object::Object<$spec>;
        impl $crate::object::Kind for $spec {
            const KIND: &'static str = stringify!($alias);
            const PLURAL: &'static str = $plural;
            type Status = $status;
        }
    };
}

/// Declares a plain data type of the object model: camelCase fields, unknown ones skipped.
macro_rules! data {
    ($($(#[$doc:meta])* pub struct $name:ident { $($body:tt)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name { $($body)* }
    )*};
}

/// Declares a set of words; one that a newer peer invented reads as the one that is `#[serde(other)]`.
macro_rules! words {
    ($($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $variant:ident,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum $name { $($(#[$vdoc])* $variant,)* }
        impl $name {
            /// The word, as written in JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant),)* }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    )*};
}
