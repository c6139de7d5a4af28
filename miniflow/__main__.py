"""``python -m miniflow``."""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["_child"]:  # before the import of all the others: a child needs little of them
        from miniflow.executors import child

        child.main()
    elif sys.argv[1:2] == ["_warden"]:
        from miniflow.executors import warden

        warden.main()
    else:
        from miniflow.cli import main

        main()
