import os, sys
# Close the descriptors that the process which started the evaluation left open.
os.closerange(3, 1 << 20)
exec(compile(sys.argv[1], "<program>", "exec"), {"__name__": "__main__"})
