"""The precision cascade: everything in a cheaper precision, then in a better one what could matter."""
