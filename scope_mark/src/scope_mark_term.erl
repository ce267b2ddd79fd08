%% SPDX-License-Identifier: Apache-2.0
%% Compact terms: how operands are written in the chunk Code and, from OTP 28, lengths in the chunk AtU8
%% (lib/compiler/src/beam_asm.erl, encode/2; erts/emulator/beam/beam_file.c, beamreader_read_tagged).
-module(scope_mark_term).
-export([read/1, read_n/2, write/2]).
-export_type([arg/0]).

-define(U, 0).
-define(MAX_LIST, 1000000).
-define(MAX_BYTES, 4096).

%% A tag and its value: 0 unsigned, 1 integer, 2 atom, 3 x, 4 y, 5 label, 6 character. Of the extended ones
%% only literal numbers keep their value; a register with a type is a register.
-type arg() :: {0..6, integer()} | {list | allocs | float_reg | literal, non_neg_integer()}.

-spec read_n(non_neg_integer(), binary()) -> {[arg()], binary()}.
read_n(N, Bin) ->
    read_n(N, Bin, []).

read_n(0, Bin, Acc) ->
    {lists:reverse(Acc), Bin};
read_n(N, Bin, Acc) ->
    {Arg, Rest} = read(Bin),
    read_n(N - 1, Rest, [Arg | Acc]).

-spec read(binary()) -> {arg(), binary()}.
read(<<Kind:4, 0:1, 7:3, Rest/binary>>) -> extended(Kind, Rest);
read(<<Value:4, 0:1, Tag:3, Rest/binary>>) -> {{Tag, Value}, Rest};
read(<<High:3, 1:2, Tag:3, Low, Rest/binary>>) when Tag < 7 -> {{Tag, High bsl 8 bor Low}, Rest};
read(<<7:3, 3:2, Tag:3, Rest/binary>>) when Tag < 7 ->
    {Length, Rest1} = unsigned(Rest),
    bytes(Tag, Length + 9, Rest1);
read(<<Size:3, 3:2, Tag:3, Rest/binary>>) when Tag < 7 ->
    bytes(Tag, Size + 2, Rest);
read(_) ->
    throw({bad_code, operand}).

bytes(Tag, N, Bin) when N =< ?MAX_BYTES ->
    case Bin of
        <<Value:N/signed-unit:8, Rest/binary>> -> {{Tag, Value}, Rest};
        _ -> throw({bad_code, truncated})
    end;
bytes(_, _, _) ->
    throw({bad_code, operand}).

extended(1, Bin) -> {N, Rest} = count(Bin), {{list, N}, skip(N, Rest)};
extended(2, Bin) -> {N, Rest} = unsigned(Bin), {{float_reg, N}, Rest};
extended(3, Bin) -> {N, Rest} = count(Bin), {{allocs, N}, skip(2 * N, Rest)};
extended(4, Bin) -> {N, Rest} = unsigned(Bin), {{literal, N}, Rest};
extended(5, Bin) ->
    case read(Bin) of
        {{Tag, _} = Register, Rest} when Tag =:= 3; Tag =:= 4 ->
            {_, Rest1} = unsigned(Rest),
            {Register, Rest1};
        _ -> throw({bad_code, operand})
    end;
extended(Kind, _) -> throw({unknown_operand, Kind}).

count(Bin) ->
    case unsigned(Bin) of
        {N, Rest} when N =< ?MAX_LIST -> {N, Rest};
        _ -> throw({bad_code, operand})
    end.

unsigned(Bin) ->
    case read(Bin) of
        {{?U, N}, Rest} when N >= 0 -> {N, Rest};
        _ -> throw({bad_code, operand})
    end.

skip(0, Bin) -> Bin;
skip(N, Bin) -> {_, Rest} = read(Bin), skip(N - 1, Rest).

%% A tag and a value below 2^64 as the compiler writes them.
-spec write(0..6, non_neg_integer()) -> binary().
write(Tag, Value) when Value < 16 -> <<Value:4, 0:1, Tag:3>>;
write(Tag, Value) when Value < 2048 -> <<(Value bsr 8):3, 1:2, Tag:3, (Value band 255)>>;
write(Tag, Value) ->
    Bytes = case binary:encode_unsigned(Value) of
        <<1:1, _/bits>> = Negative -> <<0, Negative/binary>>;
        <<One>> -> <<0, One>>;
        Positive -> Positive
    end,
    case byte_size(Bytes) of
        Size when Size =< 8 -> <<(Size - 2):3, 3:2, Tag:3, Bytes/binary>>;
        Size -> <<7:3, 3:2, Tag:3, (write(?U, Size - 9))/binary, Bytes/binary>>
    end.
