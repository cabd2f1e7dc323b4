//! The Python package `residuald`: files of records, their rows and verdicts, by the daemon's own code.

mod bundle;
mod diffusion;
mod records;
mod schema;
mod table;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use residuald::decode::SetBy;

pyo3::create_exception!(
    residuald,
    Error,
    PyValueError,
    "What was given cannot be read. The message says where and why."
);
pyo3::create_exception!(
    residuald,
    RefusedError,
    Error,
    "A record does not fit the schema. The daemon makes it a dead letter."
);

/// An error that names the daemon's settings by the arguments that have the same meaning.
fn error(message: impl ToString) -> PyErr {
    Error::new_err(named(&message.to_string()))
}

fn named(message: &str) -> String {
    SetBy::Arguments.named(message).into_owned()
}

#[pymodule]
mod _native {
    use super::*;

    #[pymodule_export]
    use super::bundle::{Bundle, use_library};
    #[pymodule_export]
    use super::diffusion::{Run, Scheduler, normals};
    #[pymodule_export]
    use super::records::{select, set_field};
    #[pymodule_export]
    use super::schema::{Schema, check_schema};
    #[pymodule_export]
    use super::table::{Table, read};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("Error", module.py().get_type::<Error>())?;
        module.add("RefusedError", module.py().get_type::<RefusedError>())
    }
}
