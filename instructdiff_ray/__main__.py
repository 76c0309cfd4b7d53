"""`python -m instructdiff_ray` is `instructdiff`."""

from instructdiff_ray.commands.cli import main

if __name__ == "__main__":
    main()
