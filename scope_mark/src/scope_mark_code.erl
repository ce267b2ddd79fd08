%% SPDX-License-Identifier: Apache-2.0
%% The chunk Code: generic instructions, in which labels are still symbols (lib/compiler/src/beam_asm.erl).
-module(scope_mark_code).
-export([read/2, imports/2, exports/2]).
-export_type([instruction/0, import/0, fa/0]).

-include("scope_mark.hrl").

-type instruction() :: {byte(), [scope_mark_term:arg()], binary()}.
-type import() :: {binary(), binary(), arity()}.
-type fa() :: {binary(), arity()}.

-define(FORMAT, 0).

%% What precedes the first function, and the functions. The head of the chunk stays out: nothing in it changes.
%% Throws {newer_opcode, N, Known} for what a newer compiler wrote.
-spec read(binary(), scope_mark_atoms:atoms()) -> {Head :: binary(), [#function{}]}.
read(<<Size:32, ?FORMAT:32, Max:32, _Labels:32, Count:32, Rest/binary>> = Code, Atoms)
  when Size >= 16, Size - 16 =< byte_size(Rest) ->
    Arities = scope_mark_tables:arities(),
    Max =< tuple_size(Arities) orelse throw({newer_opcode, Max, scope_mark_tables:otp()}),
    HeadSize = Size + 4,
    <<Head:HeadSize/binary, Body/binary>> = Code,
    Functions = functions(instructions(Body, Arities, []), Atoms),
    length(Functions) =:= Count + 1 orelse throw({bad_code, function_count}),
    {Head, Functions};
read(<<Size:32, Format:32, _/binary>>, _) when Size >= 16, Format =/= ?FORMAT ->
    throw({unknown_code_format, Format});
read(_, _) ->
    throw({bad_code, truncated}).

instructions(<<>>, _, Acc) ->
    lists:reverse(Acc);
instructions(<<Op, Rest/binary>> = Bin, Arities, Acc) when Op >= 1, Op =< tuple_size(Arities) ->
    {Args, Rest1} = scope_mark_term:read_n(element(Op, Arities), Rest),
    Bytes = binary:part(Bin, 0, byte_size(Bin) - byte_size(Rest1)),
    instructions(Rest1, Arities, [{Op, Args, Bytes} | Acc]);
instructions(<<Op, _/binary>>, _, _) ->
    throw({newer_opcode, Op, scope_mark_tables:otp()}).

%% The first of them is what stands before any func_info: it has no name and no entry.
functions(Instructions, Atoms) ->
    {Before, Rest} = lists:splitwith(fun({Op, _, _}) -> Op =/= ?FUNC_INFO end, Instructions),
    [#function{code = Before} | split(Rest, Atoms)].

split([], _) -> [];
split([{?FUNC_INFO, [_, {2, F}, {0, A}], _} = Info | Rest], Atoms) when A >= 0, A =< 255 ->
    {Body, More} = lists:splitwith(fun({Op, _, _}) -> Op =/= ?FUNC_INFO end, Rest),
    Entry = case Body of
        [{?LABEL, [{0, L}], _} | _] -> L;
        _ -> throw({bad_code, no_entry_label})
    end,
    [#function{name = scope_mark_atoms:name(F, Atoms), arity = A, entry = Entry, code = [Info | Body]}
     | split(More, Atoms)];
split(_, _) -> throw({bad_code, func_info}).

%% The chunk ImpT; an operand is an index from 0 on.
-spec imports(binary(), scope_mark_atoms:atoms()) -> tuple().
imports(<<N:32, Rest/binary>>, Atoms) when byte_size(Rest) =:= 12 * N ->
    Name = fun(I) -> scope_mark_atoms:name(I, Atoms) end,
    list_to_tuple([{Name(M), Name(F), A} || <<M:32, F:32, A:32>> <= Rest]);
imports(_, _) ->
    throw({bad_file, imports}).

%% The chunk ExpT: exported functions.
-spec exports(binary(), scope_mark_atoms:atoms()) -> [fa()].
exports(<<N:32, Rest/binary>>, Atoms) when byte_size(Rest) =:= 12 * N ->
    [{scope_mark_atoms:name(F, Atoms), A} || <<F:32, A:32, _:32>> <= Rest];
exports(_, _) ->
    throw({bad_file, exports}).
