"""Results on the disks of the nodes first, collected afterwards."""
