//! How a small closed list is written: once, with the number, the word and the meaning of each entry.
//!
//! Owns the shape of such lists. Must not know any of them.

/// Defines an enum whose entries have a number, for the wire or the store, and a word, for people, logs, metrics and
/// configuration. A number or a word never changes and is never used for something else.
macro_rules! closed_list {
    (
        $(#[$meta:meta])*
        pub enum $list:ident: $number:ident {
            $($(#[$doc:meta])* $entry:ident = $value:literal $word:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr($number)]
        pub enum $list {
            $($(#[$doc])* $entry = $value,)+
        }

        impl $list {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$entry),+];

            /// Its number.
            pub fn number(self) -> $number {
                self as $number
            }

            /// From its number; `None` for one that this version does not know.
            pub fn from_number(number: $number) -> Option<Self> {
                match number {
                    $($value => Some(Self::$entry),)+
                    _ => None,
                }
            }

            /// The word that people, logs and metrics see.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$entry => $word,)+
                }
            }

            /// From its word; `None` for one that this version does not know.
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$entry),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $list {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }

        impl serde::Serialize for $list {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.word())
            }
        }

        impl<'de> serde::Deserialize<'de> for $list {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                const WORDS: &[&str] = &[$($word),+];
                let word = std::borrow::Cow::<'de, str>::deserialize(from)?;
                Self::from_word(&word).ok_or_else(|| serde::de::Error::unknown_variant(&word, WORDS))
            }
        }
    };
}

pub(crate) use closed_list;
