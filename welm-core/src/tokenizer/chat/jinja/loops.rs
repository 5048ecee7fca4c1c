//! The variable `loop` inside a `for`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::ast::For;
use super::compare::equal;
use super::eval::Scope;
use super::value::{Fuel, Result, Value, fault, undefined};

/// The variable `loop`.
pub(super) struct Loop {
    pub(super) items: Vec<Value>,
    pub(super) at: Cell<usize>,
    pub(super) depth: usize,
    pub(super) changed: RefCell<Option<Value>>,
    /// The loop and its scope for `loop(...)`, in a recursive loop.
    pub(super) again: Option<(Rc<For>, Rc<Scope>)>,
}

impl Loop {
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// An attribute of `loop`.
    pub(super) fn attribute(&self, name: &str) -> Option<Value> {
        let (i, n) = (self.at.get(), self.items.len());
        Some(match name {
            "index" => (i + 1).into(),
            "index0" => i.into(),
            "revindex" => (n - i).into(),
            "revindex0" => (n - i - 1).into(),
            "first" => (i == 0).into(),
            "last" => (i + 1 == n).into(),
            "length" => n.into(),
            "depth" => (self.depth + 1).into(),
            "depth0" => self.depth.into(),
            "previtem" => match i.checked_sub(1) {
                Some(i) => self.items[i].clone(),
                None => undefined("there is no previous item"),
            },
            "nextitem" => match self.items.get(i + 1) {
                Some(item) => item.clone(),
                None => undefined("there is no next item"),
            },
            _ => return None,
        })
    }

    pub(super) fn cycle(&self, values: Vec<Value>) -> Result<Value> {
        match values.len() {
            0 => fault("no items for cycling given"),
            n => Ok(values[self.at.get() % n].clone()),
        }
    }

    pub(super) fn changed(&self, values: Vec<Value>, fuel: &Fuel) -> Result<Value> {
        // A list refuses `loop` itself, and values that could hold it later. Such a cycle would never be freed.
        let values = Value::list(values)?;
        let mut last = self.changed.borrow_mut();
        let same = match &*last {
            Some(last) => equal(last, &values, fuel)?,
            None => false,
        };
        if !same {
            *last = Some(values);
        }
        Ok((!same).into())
    }
}
