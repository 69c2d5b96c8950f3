"""`python -m hf_i2i_unlearn COMMAND ...`; on several devices `accelerate launch -m hf_i2i_unlearn COMMAND ...`."""

from .commands import main

if __name__ == "__main__":
    main()
