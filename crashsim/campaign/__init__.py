"""Work as numbered blocks: tasks, and executors that run them."""
