"""What commands do: the work behind several of them, or too long for the file of one."""
