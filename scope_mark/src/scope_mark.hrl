%% SPDX-License-Identifier: Apache-2.0
%% Opcodes that placing knows by name (lib/compiler/src/genop.tab).
-define(LABEL, 1).
-define(FUNC_INFO, 2).
-define(CALL, 4).
-define(CALL_LAST, 5).
-define(CALL_ONLY, 6).
-define(CALL_EXT, 7).
-define(CALL_EXT_LAST, 8).
-define(BIF1, 10).
-define(BIF2, 11).
-define(ALLOCATE, 12).
-define(DEALLOCATE, 18).
-define(RETURN, 19).
-define(LOOP_REC, 23).
-define(WAIT, 25).
-define(WAIT_TIMEOUT, 26).
-define(CATCH_END, 63).
-define(MOVE, 64).
-define(CALL_FUN, 75).
-define(CALL_EXT_ONLY, 78).
-define(TRY_CASE, 106).
-define(APPLY, 112).
-define(APPLY_LAST, 113).
-define(LINE_INSTR, 153).
-define(CALL_FUN2, 178).

%% One function: its instructions from func_info on, up to the label and line that belong to the next one.
-record(function, {
    name = <<>> :: binary(),
    arity = 0 :: arity(),
    entry = 0 :: non_neg_integer(),
    code :: [scope_mark_code:instruction()]
}).
