//! The fields of a `scheduler_config.json`, with the name and default of each class in diffusers.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Error;
use crate::decode::json::nan;

/// The most values that one schedule may have.
pub(super) const MOST_TIMESTEPS: usize = 100_000;

/// The fields of one configuration, and which of them were read.
pub(super) struct Fields<'a> {
    pub class: &'static str,
    values: &'a Map<String, Value>,
    /// `_use_default_values`: what was not set when the file was written. It takes the default of the class that reads it.
    unset: BTreeSet<&'a str>,
    read: RefCell<BTreeSet<&'static str>>,
}

/// Parses the JSON of an object. Python writes NaN and infinities as such, so they are allowed.
pub(super) fn parse(json: &str) -> Result<Map<String, Value>, Error> {
    match serde_json::from_str(&nan::marked(json)) {
        Ok(Value::Object(values)) => Ok(values),
        Ok(_) => Err(Error::Config("must be a JSON object".into())),
        Err(e) => Err(Error::Config(format!("is not JSON: {e}"))),
    }
}

impl<'a> Fields<'a> {
    pub fn new(class: &'static str, values: &'a Map<String, Value>) -> Fields<'a> {
        let unset = values.get("_use_default_values").and_then(Value::as_array);
        let unset = unset.into_iter().flatten().filter_map(Value::as_str);
        Fields {
            class,
            values,
            unset: unset.collect(),
            read: RefCell::default(),
        }
    }

    /// What the file says that nothing has read.
    pub fn ignored(&self) -> Vec<String> {
        let read = self.read.borrow();
        let names = self.values.keys().filter(|name| !name.starts_with('_'));
        let unread = names.filter(|name| !read.contains(name.as_str()));
        unread.cloned().collect()
    }

    fn value(&self, name: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(name);
        let value = self.values.get(name)?;
        (!self.unset.contains(name)).then_some(value)
    }

    pub fn refused(&self, name: &str, why: &str) -> Error {
        let value = self.values.get(name).map(ToString::to_string);
        let value = value.unwrap_or_else(|| "its default".to_string());
        let value: String = nan::unmarked(&value).chars().take(100).collect();
        Error::Config(format!("{}: `{name}` is {value}: {why}", self.class))
    }

    /// null is false, as in Python.
    pub fn boolean(&self, name: &'static str, default: bool) -> Result<bool, Error> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(self.refused(name, "it must be true or false")),
        }
    }

    /// Any number, infinities included.
    pub fn number(&self, name: &'static str, default: f64) -> Result<f64, Error> {
        self.value(name)
            .map_or(Ok(default), |value| self.as_number(name, value))
    }

    /// A number, or null for none.
    pub fn optional_number(&self, name: &'static str) -> Result<Option<f64>, Error> {
        let value = self.value(name).filter(|value| !value.is_null());
        value.map(|value| self.as_number(name, value)).transpose()
    }

    fn as_number(&self, name: &str, value: &Value) -> Result<f64, Error> {
        let infinite = |text: &str| match nan::literal_of(text)? {
            "Infinity" | "Inf" => Some(f64::INFINITY),
            "-Infinity" | "-Inf" => Some(f64::NEG_INFINITY),
            _ => None,
        };
        let number = value.as_f64().or_else(|| value.as_str().and_then(infinite));
        number.ok_or_else(|| self.refused(name, "it must be a number"))
    }

    /// A whole number from `least` to [`MOST_TIMESTEPS`].
    pub fn whole(&self, name: &'static str, default: i64, least: i64) -> Result<i64, Error> {
        let Some(value) = self.value(name) else {
            return Ok(default);
        };
        let whole = value
            .as_i64()
            .filter(|whole| (least..=MOST_TIMESTEPS as i64).contains(whole));
        whole.ok_or_else(|| {
            let why = format!("it must be a whole number from {least} to {MOST_TIMESTEPS}");
            self.refused(name, &why)
        })
    }

    /// A list of numbers, or null for none.
    pub fn numbers(&self, name: &'static str) -> Result<Option<Vec<f64>>, Error> {
        let why = format!("it must be a list of 1 to {MOST_TIMESTEPS} numbers");
        match self.value(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(values)) if (1..=MOST_TIMESTEPS).contains(&values.len()) => {
                let numbers: Option<Vec<f64>> = values.iter().map(Value::as_f64).collect();
                Ok(Some(numbers.ok_or_else(|| self.refused(name, &why))?))
            }
            Some(_) => Err(self.refused(name, &why)),
        }
    }

    /// A list of whole numbers.
    pub fn wholes(&self, name: &'static str) -> Result<Vec<i64>, Error> {
        let wholes = match self.value(name) {
            None => Some(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(Value::as_i64).collect(),
            Some(_) => None,
        };
        wholes.ok_or_else(|| self.refused(name, "it must be a list of whole numbers"))
    }

    /// One of `choices`, each a name and what it stands for.
    pub fn choice<T: Copy>(
        &self,
        name: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T, Error> {
        let Some(value) = self.value(name) else {
            return Ok(default);
        };
        let chosen = |text| choices.iter().find(|(name, _)| *name == text);
        match value.as_str().and_then(chosen) {
            Some((_, choice)) => Ok(*choice),
            None => {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                Err(self.refused(name, &format!("it must be one of {}", names.join(", "))))
            }
        }
    }

    /// As [`choice`](Self::choice), with null for none.
    pub fn optional_choice<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, Error> {
        let choices: Vec<_> = choices
            .iter()
            .map(|(name, it)| (*name, Some(*it)))
            .collect();
        match self.value(name) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.choice(name, None, &choices),
        }
    }

    /// Refuses a field that is set to something.
    pub fn must_be_unset(&self, name: &'static str, why: &str) -> Result<(), Error> {
        match self.value(name) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(_) => Err(self.refused(name, why)),
        }
    }
}
