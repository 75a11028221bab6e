"""The server process: started, checked by true inference, supervised, ended gently."""
