"""Ways of running the body of a task: in a worker's thread, or as a coroutine on a loop of its own."""
