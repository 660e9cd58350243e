"""Several engines that share the memory of one bundle."""
