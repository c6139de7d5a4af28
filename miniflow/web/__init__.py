"""HTTP: no SQL and no state logic, only what is asked and how it is answered."""
